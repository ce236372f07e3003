"""Vectors of any number of lanes; of one lane they are scalars, as a thread of a GPU has them."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Expr


def of_lanes(dtype: str, lanes: int) -> str:
    """The name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spread(value: Expr, lanes: int) -> Expr:
    """A vector of one value."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def span(start: Expr, lanes: int) -> Expr:
    """Neighbouring indices from `start` on."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)
