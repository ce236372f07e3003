"""One run of the reference, for the shapes of all values and for what depends on shapes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.integer.program import Apply, Boundary, Dequantize, Program
from ptq.integer.reference import Reference

Array = npt.NDArray[Any]
SHAPE_OPERATORS = ("Shape", "Size")


@dataclass(frozen=True)
class Trace:
    """What a program computes for inputs of one shape.

    codes: the shape of every code tensor. raw: every raw value of that run.
    static: names of the raw values that are the same for all inputs of this shape.
    samples: how many samples one call takes; dynamic: whether calls may be repeated over a batch.
    """

    codes: Mapping[str, tuple[int, ...]]
    raw: Mapping[str, Array]
    static: frozenset[str]
    samples: int
    dynamic: bool


def trace(program: Program, batch: int | None = None) -> Trace:
    """Shapes for `batch` samples, or for one sample of any number if the samples are independent.

    Raises:
        UnsupportedModelError: a shape that only a run decides, or samples that depend on others.
    """
    symbolic = all(_leads_with_symbol(boundary) for boundary in program.inputs)
    samples = batch or (1 if symbolic else _fixed_batch(program))
    feeds = {b.name: _invent(program, b, samples) for b in program.inputs}
    codes, raw = Reference(program).run_values(feeds)
    dynamic = symbolic and batch is None
    if dynamic:
        _require_independent(program, feeds, raw)
    shapes = {name: tuple(array.shape) for name, array in codes.items()}
    return Trace(shapes, raw, static_values(program), samples, dynamic)


def static_values(program: Program) -> frozenset[str]:
    """Raw values that are constants, or arithmetic on shapes and constants."""
    static = set(program.constants)
    for step in program.steps:
        if not isinstance(step, Apply) or any(ref.codes for ref in step.outputs):
            continue
        inputs = [ref for ref in step.inputs if ref is not None]
        of_shapes = step.op_type in SHAPE_OPERATORS and not step.domain
        if of_shapes or all(not ref.codes and ref.name in static for ref in inputs):
            static |= {ref.name for ref in step.outputs}
    return frozenset(static)


def _leads_with_symbol(boundary: Boundary) -> bool:
    return bool(boundary.shape) and not isinstance((boundary.shape or (1,))[0], int)


def _fixed_batch(program: Program) -> int:
    sizes = {b.shape[0] for b in program.inputs if b.shape}
    size = next(iter(sizes), 1)
    return size if isinstance(size, int) else 1


def _invent(program: Program, boundary: Boundary, samples: int) -> Array:
    """Random codes' values, in the input's shape for so many samples.

    Raises:
        UnsupportedModelError: another axis than the first is symbolic, or the type is not float32.
    """
    if boundary.dtype != ir.DataType.FLOAT or boundary.name not in program.codes:
        raise UnsupportedModelError(
            f"input {boundary.name}: is {boundary.dtype.name} or is not quantised at once; TVM "
            "modules take float32 inputs: use --target onnx"
        )
    shape = tuple(boundary.shape or ())
    rest = shape[1:]
    if boundary.shape is None or not all(isinstance(size, int) for size in rest):
        raise UnsupportedModelError(
            f"input {boundary.name}: has shape {list(shape)}; a TVM module has fixed sizes behind "
            "the first axis: export the model with static sizes"
        )
    first = samples if not isinstance(shape[0], int) else shape[0]
    size = (first, *(int(n) for n in rest if isinstance(n, int)))
    grid, rng = program.codes[boundary.name], np.random.default_rng(0)
    return grid.dequantize(rng.integers(grid.low, grid.high + 1, size).astype(np.uint8))


def _require_independent(
    program: Program, feeds: Mapping[str, Array], alone: Mapping[str, Array]
) -> None:
    """Run the first sample again beside a second one: its outputs must be the same.

    Raises:
        UnsupportedModelError: they are not.
    """
    pairs = {name: np.concatenate([x, x[:, ..., ::-1]]) for name, x in feeds.items()}
    together = Reference(program).run(pairs)
    for boundary in program.outputs:
        got, wanted = together[boundary.name], alone[boundary.name]
        if got.shape != (2 * wanted.shape[0], *wanted.shape[1:]) or (got[:1] != wanted).any():
            raise UnsupportedModelError(
                f"output {boundary.name}: a sample's result depends on the batch around it, "
                "so that a module cannot take any number of samples: give --batch N"
            )


def dequantized(program: Program) -> frozenset[str]:
    """Values that some step turns into raw float32."""
    return frozenset(s.value for s in program.steps if isinstance(s, Dequantize))
