"""Loop nests over strided operands: as few loops as the strides allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Expr
from ptq.kernels.view import View, collapse

LANES = 16
"""Of vectors of float32: a register of AVX-512, or two of AVX2."""
NEVER = 1 << 31
"""Lanes that no run fills."""


def elementwise(on: Binding, views: Sequence[View], body: Callable[..., None]) -> None:
    """Call `body` with the flat index into every view, for each element of one common shape."""
    extents, walked = collapse(views)
    with on.nest(extents) as indices:
        body(*(view.at(indices) for view in walked))


def in_columns(on: Binding, views: Sequence[View], most: int, body: Callable[..., None]) -> None:
    """As `elementwise`, with the last loop in parts of at most so many, each a loop outermost.

    For what is looked up by the last index: the rows of a part stay in the cache.
    """
    extents, walked = collapse(views)
    *rest, last = (1, *extents)
    parts = -(-last // most)
    if parts == 1 or int(np.prod(rest)) == 1:
        elementwise(on, views, body)
        return
    size = -(-last // parts)
    with on.nest([parts, *rest[1:], size], neighbours=-1) as (part, *place, within):
        first = T.min(part * size, T.int32(last - size))
        body(*(view.at([*place, first + within]) for view in walked))


def by_runs(on: Binding, views: Sequence[View], lanes: int, body: Callable[..., None]) -> None:
    """As `elementwise`, by vectors of neighbours where all views have as many; the lanes come last.

    What a run has left over is a vector that begins earlier: nothing is read that is written.
    """
    extents, walked = collapse(views)
    if not extents or extents[-1] < lanes or any(view.strides[-1] != 1 for view in walked):
        elementwise(on, views, lambda *at: body(*at, 1))
        return
    with on.nest([*extents[:-1], -(-extents[-1] // lanes)], lanes) as (*place, number):
        first = T.min(number * lanes, T.int32(extents[-1] - lanes))
        body(*(view.at([*place, first]) for view in walked), lanes)


def are_pixels(views: Sequence[View], most: int) -> bool:
    """True if y has beside each other what x has apart: up to `most` channels of enough pixels."""
    extents, (x, y) = collapse(views)
    *_, width, channels = (1, 1, *extents)
    steps = [(0, 0, *view.strides)[-2:] for view in (x, y)]
    enough = channels <= most and width >= LANES
    return enough and steps[0][0] == 1 and steps[1] == (channels, 1)


def by_pixels(
    on: Binding, views: Sequence[View], most: int, body: Callable[[list[Expr], Expr, int], None]
) -> None:
    """The same for x and y, of which x may have channels apart that y has beside each other.

    Calls `body` with where the vector of each channel, of `most` at most, begins in x, where all
    of them begin in y, and the lanes of one.
    """
    extents, (x, y) = collapse(views)
    *rest, width, channels = (1, 1, *extents)
    if not are_pixels(views, most):
        by_runs(on, views, LANES, lambda at_x, at_y, lanes: body([at_x], at_y, lanes))
        return
    with on.nest([*rest[2:], -(-width // LANES)], LANES) as (*place, number):
        first = T.min(number * LANES, T.int32(width - LANES))
        at_x, at_y = (view.at([*place, first, 0]) for view in (x, y))
        body([at_x + channel * x.strides[-1] for channel in range(channels)], at_y, LANES)
