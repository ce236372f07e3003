"""Vectors of any number of lanes; of one lane they are scalars, as a thread of a GPU has them."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Buffer, Expr


def of_lanes(dtype: str, lanes: int) -> str:
    """The name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spread(value: Expr, lanes: int) -> Expr:
    """A vector of one value."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def span(start: Expr, lanes: int) -> Expr:
    """Neighbouring indices from `start` on."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def store_first(y: Buffer, vector: Expr, start: Expr, lanes: int, left: Expr, rest: int) -> None:
    """Store a vector of at most 16 lanes, or as much of it as there is room for.

    left: how many elements that is; if less than `lanes`, then none or `rest`.
    """
    with T.If(left >= lanes):
        with T.Then():
            T.buffer_store(y, vector, [span(start, lanes)])
        if rest:
            with T.Else(), T.If(left > 0), T.Then():
                _store_parts(y, vector, start, rest)


def _store_parts(y: Buffer, vector: Expr, start: Expr, count: int) -> None:
    """The first lanes, by stores of 8, 4, 2 and 1."""
    at = 0
    for size in (8, 4, 2, 1):
        if count & size:
            lanes = [tirx.const(at + i, "int32") for i in range(size)]
            T.buffer_store(y, tirx.Shuffle([vector], lanes), [span(start + at, size)])
            at += size
