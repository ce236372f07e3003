"""Loop nests over strided operands: as few loops as the strides allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Expr
from ptq.kernels.view import View, collapse

LANES = 16
"""Of vectors of float32: a register of AVX-512, or two of AVX2."""


def elementwise(on: Binding, views: Sequence[View], body: Callable[..., None]) -> None:
    """Call `body` with the flat index into every view, for each element of one common shape."""
    extents, walked = collapse(views)
    with on.nest(extents) as indices:
        body(*(view.at(indices) for view in walked))


def by_vectors(
    on: Binding, views: Sequence[View], most: int, body: Callable[[list[Expr], Expr, int], None]
) -> None:
    """Where x and y are walked one by one, or channel by channel in x and pixel by pixel in y.

    Calls `body` with where the vector of each channel, of `most` at most, begins in x, where all
    of them begin in y, and the lanes of one; where strides are others with one element, one lane.
    """
    extents, (x, y) = collapse(views)
    mixed = len(extents) > 1 and extents[-1] <= most and x.strides[-1] != 1
    channels = extents[-1] if mixed else 1
    axes = len(extents) - mixed
    outer, ends = extents[:axes], [view.strides[axes - 1 : axes] for view in (x, y)]
    if ends != [(1,), (channels,)] or outer[-1] < LANES or (mixed and y.strides[-1] != 1):
        elementwise(on, views, lambda at_x, at_y: body([at_x], at_y, 1))
        return
    from_x, to_y = (View(outer, view.strides[:axes], view.offset) for view in (x, y))
    with on.nest([*outer[:-1], -(-outer[-1] // LANES)]) as (*place, number):
        first = T.min(number * LANES, T.int32(outer[-1] - LANES))  # the last begins earlier
        at_x, at_y = (view.at([*place, first]) for view in (from_x, to_y))
        starts = [at_x + channel * x.strides[-1] for channel in range(channels)]
        body(starts if mixed else [at_x], at_y, LANES)
