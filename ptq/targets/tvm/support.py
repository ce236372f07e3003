"""What a program has that cannot be compiled; asked before anything is."""

from __future__ import annotations

from collections.abc import Iterator

from ptq.errors import UnsupportedModelError
from ptq.integer.claims import MOVES
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
from ptq.targets.tvm.trace import dequantized, static_values

MOVEMENTS = frozenset({*MOVES, "Concat", "Gather", "Pad", "Resize"})
WITH_KERNELS = (
    Quantize, Dequantize, Convolve, Gemm, MatMul, Add, Multiply, Lookup, Mean, Softmax, Normalize,
)  # fmt: skip
POOLS = frozenset({"MaxPool", "ReduceMax"})
LARGEST_CODE = 255
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
    for step in program.steps:
        reason = _refusal(step, static)
        if reason is not None:
            yield f"{step.name} ({_kind(step)}: {reason})"
    for name, grid in program.codes.items():
        if grid.high > LARGEST_CODE:
            yield f"{name} (codes of 16 bits: quantise with residual_bits = 8 in the recipe)"
    for boundary in program.outputs:
        if boundary.name not in dequantized(program):
            yield f"output {boundary.name} (it is not dequantised codes)"


def _kind(step: Step) -> str:
    return step.op_type if isinstance(step, Apply) else type(step).__name__


def _refusal(step: Step, static: frozenset[str]) -> str | None:
    if isinstance(step, Softmax) and step.keep is not None:
        return "masks with a value known only at run time"
    if not isinstance(step, Apply):
        return None if type(step) in WITH_KERNELS else "has no kernel yet"
    if step.island is not None:
        return f"computes in float, because {step.island}"
    if not any(ref.codes for ref in step.outputs):
        known = all(ref.name in static for ref in step.outputs)
        return None if known else "computes raw values from codes"
    if step.op_type not in MOVEMENTS | POOLS or step.domain:
        return "has no kernel yet"
    return _dynamic_operand(step, static)


def _dynamic_operand(step: Apply, static: frozenset[str]) -> str | None:
    refs: list[Ref] = [ref for ref in step.inputs if ref is not None and not ref.codes]
    unknown = [ref.name for ref in refs if ref.name not in static]
    return f"{unknown[0]} is known only at run time" if unknown else None
