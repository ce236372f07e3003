"""Where a kernel finds a raw operand: in an input, or in a constant.

Where an input's elements went is found as for codes (`moves`): the reference moves their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import UnsupportedModelError
from ptq.integer import movement
from ptq.integer.program import Apply, Ref
from ptq.kernels.view import View, strided
from ptq.targets.tvm.layout import view_of
from ptq.targets.tvm.lowering import Feed, Lowering, Operand
from ptq.targets.tvm.origins import KEEPS_ORDER, MOVES, dtype_of, origins

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Elements that a kernel reads: of which operand, where, and of which type.

    inverted: they stand for True where they are zero.
    """

    operand: Operand
    view: View
    dtype: str
    inverted: bool = False


def source_of(state: Lowering, ref: Ref) -> Source:
    """Where a raw operand's elements are: an input's, or a constant's.

    Raises:
        UnsupportedModelError: they are too far from the order in which the input has them.
    """
    if ref.name in state.trace.static:
        array = state.raw(ref.name)
        array = array.astype(np.uint8) if array.dtype == bool else array
        return Source(state.constant(array), view_of(array.shape, False), str(array.dtype))
    origin = origins(state.program, state.trace.static)[ref.name]
    view = strided(_places(state, origin.feed, ref.name))
    if view is None:
        raise UnsupportedModelError(
            f"{ref.name}: its elements are not at equal distances in input {origin.feed}; no "
            "kernel reads that: use --target onnx"
        )
    feed = next(b for b in state.program.inputs if b.name == origin.feed)
    dtype = str(dtype_of(feed, state.program))
    return Source(Feed(feed.name), view, dtype, origin.tested == "zero")


def _places(state: Lowering, feed: str, name: str) -> npt.NDArray[np.int64]:
    """For every element of a raw value, which one of the input it is."""
    shape = state.trace.raw[feed].shape
    numbers: dict[str, Array] = {feed: np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)}
    for step in state.program.steps:
        if name in numbers:
            break
        if not isinstance(step, Apply) or step.op_type not in MOVES | KEEPS_ORDER:
            continue
        first, *others = step.inputs
        if first is None or first.name not in numbers or first.codes:
            continue
        moved = numbers[first.name]
        if step.op_type in MOVES:
            operands = [moved, *(None if ref is None else state.raw(ref.name) for ref in others)]
            (moved,) = movement.apply(step, operands, state.program.opset, {})
        numbers[step.outputs[0].name] = moved
    return numbers[name]
