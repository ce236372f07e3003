"""Vectors of any number of lanes; of one lane they are scalars, as a thread of a GPU has them."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Buffer, Expr

_BYTES = 16


def of_lanes(dtype: str, lanes: int) -> str:
    """The name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spread(value: Expr, lanes: int) -> Expr:
    """A vector of one value."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def span(start: Expr, lanes: int) -> Expr:
    """Neighbouring indices from `start` on."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def store_first(y: Buffer, vector: Expr, start: Expr, left: Expr, rest: int) -> None:
    """Store a vector of 16 bytes, or as much of it as is left.

    left: how many elements may be written; if less than 16, then none or `rest`.
    """
    with T.If(left >= _BYTES):
        with T.Then():
            T.buffer_store(y, vector, [span(start, _BYTES)])
        if rest:
            with T.Else(), T.If(left > 0), T.Then():
                at = 0
                for size in (8, 4, 2, 1):
                    if rest & size:
                        some = [tirx.const(at + i, "int32") for i in range(size)]
                        part = tirx.Shuffle([vector], some)
                        T.buffer_store(y, part, [span(start + at, size)])
                        at += size
