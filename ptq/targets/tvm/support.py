"""What a program has that cannot be compiled; asked before anything is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ptq.errors import UnsupportedModelError
from ptq.integer.claims import MOVES
from ptq.integer.flow import reads
from ptq.integer.program import (
    Add,
    Apply,
    Convolve,
    Dequantize,
    Gemm,
    Lookup,
    MatMul,
    Mean,
    Multiply,
    Normalize,
    Program,
    Quantize,
    Ref,
    Softmax,
    Step,
)
from ptq.targets.tvm.joined import joined
from ptq.targets.tvm.origins import Origin, chosen_table, dtype_of, origins
from ptq.targets.tvm.trace import static_values

MOVEMENTS = frozenset({*MOVES, "Concat", "Gather", "Pad", "Resize"})
WITH_KERNELS = (
    Quantize, Dequantize, Convolve, Gemm, MatMul, Add, Multiply, Lookup, Mean, Softmax, Normalize,
)  # fmt: skip
POOLS = frozenset({"MaxPool", "ReduceMax", "ReduceMin"})
READERS_OF_16_BITS = (Add, Normalize, Dequantize, Apply)
SHOWN = 5


def require_support(program: Program) -> None:
    """Refuse a program that has a step without a kernel.

    Raises:
        UnsupportedModelError: names such steps, why, and what to do.
    """
    found = list(refusals(program))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UnsupportedModelError(
            f"this target cannot compile {'; '.join(found[:SHOWN])}{more}: use --target onnx, or "
            "change the model so that nothing stays float (`ptq inspect` lists what does)"
        )


def refusals(program: Program) -> Iterator[str]:
    """Steps and outputs that cannot be compiled, each with its reason."""
    static = static_values(program)
    known, results = origins(program, static), joined(program, static)
    for step in program.steps:
        reason = _refusal(program, step, static, known, results) or _of_16_bits(step, program)
        if reason is not None:
            yield f"{step.name} ({_kind(step)}: {reason})"
    for boundary in program.inputs:
        if dtype_of(boundary, program) is None:
            yield f"input {boundary.name} (it is {boundary.dtype.name}, and not quantised at once)"
    for boundary in program.outputs:
        if boundary.name not in results:
            yield f"output {boundary.name} (not all of it comes from codes)"


def _kind(step: Step) -> str:
    return step.op_type if isinstance(step, Apply) else type(step).__name__


def _refusal(
    program: Program,
    step: Step,
    static: frozenset[str],
    known: Mapping[str, Origin],
    results: frozenset[str],
) -> str | None:
    if isinstance(step, Softmax) and step.keep is not None:
        readable = step.keep.name in static or step.keep.name in known
        return None if readable else f"computes its mask, {step.keep.name}, from an input"
    if not isinstance(step, Apply):
        return None if type(step) in WITH_KERNELS else "has no kernel yet"
    if step.island is not None:
        return f"computes in float, because {step.island}"
    if not any(ref.codes for ref in step.outputs):
        told = all(ref.name in static | known.keys() | results for ref in step.outputs)
        return None if told else "computes raw values from what an input holds"
    if step.op_type not in MOVEMENTS | POOLS or step.domain:
        return "has no kernel yet"
    if chosen_table(program, step, known) is not None:
        return None
    return _dynamic_operand(step, static)


def _of_16_bits(step: Step, program: Program) -> str | None:
    """Sums, norms and movements read 16-bit codes; every kernel can write them."""
    pool = isinstance(step, Apply) and step.op_type in POOLS
    if isinstance(step, READERS_OF_16_BITS) and not pool:
        return None
    wide = [name for name in inputs_of(step) if program.codes[name].dtype is not np.uint8]
    return f"reads 16-bit codes, {wide[0]}" if wide else None


def inputs_of(step: Step) -> list[str]:
    """Names of the code tensors that a step reads."""
    return [ref.name for ref in reads(step) if ref.codes]


def _dynamic_operand(step: Apply, static: frozenset[str]) -> str | None:
    refs: list[Ref] = [ref for ref in step.inputs if ref is not None and not ref.codes]
    unknown = [ref.name for ref in refs if ref.name not in static]
    return f"{unknown[0]} is known only at run time" if unknown else None
