"""Normalize steps in ONNX: exact in float64, exact in int64, and as float operators.

In float64 every number is an integer below 2^53, or one divided by a power of two; IEEE's square
root is correctly rounded, so its floor is the integer square root of what is below 2^52. The only
inexact operation is the one division a row, whose floor is exact too: 2^41 / root is an integer, or
2^-41 of itself away from one, and its rounding error is 2^-53 of itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.integer.program import Normalize
from ptq.targets import exact, wide
from ptq.targets.build import Builder
from ptq.targets.rows import beside

NEWTON_STEPS = 6  # from less than twice the root: relative errors 1, 1/4, .03, 3e-4, 5e-8, 0
LAST = [-1]


def in_doubles(b: Builder, step: Normalize) -> None:
    """The fast form."""
    u, spread = _centred(b, step)

    def number(value: float) -> ir.Value:
        return beside(b, u, value, np.float64)

    raised = b.node("Mul", [spread, number(4.0**step.shift)])
    raised = b.node("Add", [raised, number(step.epsilon)])
    root = b.node("Floor", [b.node("Sqrt", [raised])])
    root = root if step.epsilon else b.node("Max", [root, number(1)])
    inverse = b.node("Floor", [b.node("Div", [number(2.0**step.inverse_bits), root])])
    unit = 2.0 ** -float(step.requantizer.shift)
    gained = wide.times(b, b.node("Mul", [u, inverse]), step.gain * unit)
    rounding: wide.Rounding = "cast" if step.tieless else "even"
    wide.bind(b, step.output, gained, step.offset * unit, step.requantizer, rounding)


def _centred(b: Builder, step: Normalize) -> tuple[ir.Value, ir.Value]:
    """u and S, float64: [..., n] and [..., 1]."""
    x, axes = wide.in_double(b, step.input), exact.int64(b, LAST)

    def number(value: float) -> ir.Value:
        return beside(b, x, value, np.float64)

    if step.centred:
        x = b.node("Mul", [x, number(2.0**step.mean_bits)]) if step.mean_bits else x
        half_up = b.node("Add", [b.node("ReduceMean", [x, axes]), number(0.5)])
        u = b.node("Sub", [x, b.node("Floor", [half_up])])
    else:
        u = wide.plus(b, x, -b.plan(step.input).zero_point)
    return u, b.node("ReduceSumSquare", [u, axes])


def in_integers(b: Builder, step: Normalize) -> None:
    """The strict form."""
    axes = exact.int64(b, LAST)
    x, n = exact.cast(b, b.codes(step.input), ir.DataType.INT64), exact.int64(b, len(step.gain))
    if step.centred:  # no code is negative, so that Div rounds down
        x = b.node("Mul", [x, exact.int64(b, 2**step.mean_bits)])
        twice = b.node("Mul", [b.node("ReduceSum", [x, axes]), exact.int64(b, 2)])
        mean = b.node("Div", [b.node("Add", [twice, n]), exact.int64(b, 2 * len(step.gain))])
        u = b.node("Sub", [x, mean])
    else:
        u = b.node("Sub", [x, exact.int64(b, b.plan(step.input).zero_point)])
    spread = b.node("ReduceSum", [b.node("Mul", [u, u]), axes])
    raised = b.node("Mul", [spread, exact.int64(b, 4**step.shift)])
    raised = b.node("Add", [raised, exact.int64(b, step.epsilon)])
    inverse = b.node("Div", [exact.int64(b, 2**step.inverse_bits), _root(b, raised)])
    gained = b.node("Mul", [b.node("Mul", [u, inverse]), exact.int64(b, step.gain)])
    acc = b.node("Add", [gained, exact.int64(b, step.offset)])
    b.bind_codes(step.output, exact.requantize(b, acc, step.requantizer))


def _root(b: Builder, square: ir.Value) -> ir.Value:
    """max(1, isqrt(square)) of [..., 1] int64 below 2^52, by Newton's method.

    It starts at the power of two above the root, found by counting the powers of four that the
    square reaches, and never rises: the floor of the root is where it stays.
    """
    powers = exact.int64(b, 4 ** np.arange(26, dtype=np.int64))
    reached = exact.cast(b, b.node("GreaterOrEqual", [square, powers]), ir.DataType.INT64)
    count = b.node("ReduceSum", [reached, exact.int64(b, LAST)])
    root = b.node("Gather", [exact.int64(b, 2 ** np.arange(27, dtype=np.int64)), count])
    for _ in range(NEWTON_STEPS):
        both = b.node("Add", [root, b.node("Div", [square, root])])
        root = b.node("Min", [root, b.node("Div", [both, exact.int64(b, 2)])])
    return b.node("Max", [root, exact.int64(b, 1)])


def as_floats(b: Builder, step: Normalize) -> ir.Value:
    """The float operators that the step stands for, on dequantised codes: [..., n] float32."""
    x, y, n = b.dequantize(step.input), b.plan(step.output), len(step.gain)
    unit = 2.0 ** -float(step.requantizer.shift) * float(y.scale)
    spread = 2.0 ** (step.inverse_bits - step.shift) / np.sqrt(n)
    scale = b.constant(step.gain * unit * spread, np.float32, "t")
    bias = b.constant(step.offset * unit, np.float32, "t")
    if step.centred:
        attributes = {"axis": -1, "epsilon": step.float_epsilon}
        return b.node("LayerNormalization", [x, scale, bias], attributes)
    square = b.node("ReduceMean", [b.node("Mul", [x, x]), exact.int64(b, LAST)])
    epsilon = b.constant(step.float_epsilon, np.float32, "c")
    root = b.node("Sqrt", [b.node("Add", [square, epsilon])])
    normal = b.node("Mul", [b.node("Div", [x, root]), scale])
    return b.node("Add", [normal, bias]) if step.offset.any() else normal
