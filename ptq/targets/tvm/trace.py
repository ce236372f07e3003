"""One run of the reference, for the shapes of all values and for what depends on shapes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import UnsupportedModelError, UsageError
from ptq.integer.program import Apply, Boundary, Dequantize, Program
from ptq.integer.reference import Reference

Array = npt.NDArray[Any]
SHAPE_OPERATORS = ("Shape", "Size")


@dataclass(frozen=True)
class Trace:
    """What a program computes for inputs of one shape.

    codes: the shape of every code tensor. raw: every raw value of that run.
    static: names of the raw values that are the same for all inputs of this shape.
    axes: along which axis of a code tensor the samples of a batch lie; None if they have it in
        common. The first, of those that are not named.
    samples: how many samples one call takes; dynamic: whether calls may be repeated over a batch.
    """

    codes: Mapping[str, tuple[int, ...]]
    raw: Mapping[str, Array]
    static: frozenset[str]
    samples: int
    dynamic: bool
    axes: Mapping[str, int | None] = field(default_factory=dict)


def trace(
    program: Program, batch: int | None = None, sizes: Mapping[str, int] | None = None
) -> Trace:
    """Shapes for `batch` samples, or for one sample of any number if the samples are independent.

    sizes: of symbolic axes behind the first, by their names.

    Raises:
        UnsupportedModelError: a shape that only a run decides, or samples that depend on others.
        UsageError: a size of an axis that no input has.
    """
    symbolic = all(_leads_with_symbol(boundary) for boundary in program.inputs)
    samples = batch or (1 if symbolic else _fixed_batch(program))
    _require_axes(program, sizes or {})
    feeds = {b.name: _invent(program, b, samples, sizes or {}) for b in program.inputs}
    codes, raw = Reference(program).run_values(feeds)
    dynamic = symbolic and batch is None
    shapes = {name: tuple(array.shape) for name, array in codes.items()}
    axes = _sample_axes(program, feeds, raw, shapes) if dynamic else {}
    return Trace(shapes, raw, static_values(program), samples, dynamic, axes)


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


def _require_axes(program: Program, sizes: Mapping[str, int]) -> None:
    axes = {size for b in program.inputs for size in (b.shape or ())[1:] if isinstance(size, str)}
    unknown = sizes.keys() - axes
    if unknown:
        raise UsageError(
            f"--size {', '.join(sorted(unknown))}: no such axis behind the first; there is "
            f"{', '.join(sorted(axes)) or 'none'}"
        )


def _invent(program: Program, boundary: Boundary, samples: int, sizes: Mapping[str, int]) -> Array:
    """Random codes' values, or zeros and ones, in the input's shape for so many samples.

    Raises:
        UnsupportedModelError: an axis behind the first is symbolic, and `sizes` does not have it.
    """
    first, *behind = boundary.shape or (None,)
    rest = [sizes.get(size, size) if isinstance(size, str) else size for size in behind]
    if boundary.shape is None or not all(isinstance(size, int) for size in rest):
        named = next((size for size in rest if isinstance(size, str)), None)
        remedy = (
            f"give `ptq compile --size {named}=N`"
            if named
            else "export the model with static sizes"
        )
        raise UnsupportedModelError(
            f"input {boundary.name}: has shape {list(boundary.shape or ())}; a TVM module has "
            f"fixed sizes behind the first axis: {remedy}"
        )
    shape = (first if isinstance(first, int) else samples, *(int(str(size)) for size in rest))
    rng, grid = np.random.default_rng(0), program.codes.get(boundary.name)
    if grid is None:
        return rng.integers(0, 2, shape).astype(boundary.dtype.numpy())
    return grid.dequantize(rng.integers(grid.low, grid.high + 1, shape).astype(grid.dtype))


def _sample_axes(
    program: Program,
    feeds: Mapping[str, Array],
    alone: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, int | None]:
    """Run the first sample again beside a second one: its outputs must be the same.

    Returns the axis along which each tensor is longer then.

    Raises:
        UnsupportedModelError: they are not.
    """
    pairs = {name: np.concatenate([x, x[:, ..., ::-1]]) for name, x in feeds.items()}
    codes, together = Reference(program).run_values(pairs)
    for boundary in program.outputs:
        got, wanted = together[boundary.name], alone[boundary.name]
        if got.shape != (2 * wanted.shape[0], *wanted.shape[1:]) or (got[:1] != wanted).any():
            raise UnsupportedModelError(
                f"output {boundary.name}: a sample's result depends on the batch around it, "
                "so that a module cannot take any number of samples: give --batch N"
            )
    return {name: _longer(shape, codes[name].shape) for name, shape in shapes.items()}


def _longer(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    return next((axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), None)


def dequantized(program: Program) -> frozenset[str]:
    """Values that some step turns into raw float32."""
    return frozenset(s.value for s in program.steps if isinstance(s, Dequantize))
