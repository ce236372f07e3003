"""Steps with 16-bit codes, which no quantised operator of onnxruntime has, in float64.

Every number is an integer below 2^53 or one divided by a power of two, until the one rounding: the
codes are those of the reference. From one such step to the next they stay float64, so that a sum
of what has one scale is an Add and a Clip, whose operands are rounded by moving them
(`moved_codes`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Gemm, Ref
from ptq.targets import exact
from ptq.targets.build import Builder
from ptq.targets.storage import store_weight

FLOAT_INTEGERS = 2**24
Rounding = Literal["even", "cast", "none"]


def gemm(b: Builder, step: Gemm) -> None:
    """The integer product and its bias, requantised to 16 bits."""
    ratio = step.requantizer.multiplier * np.exp2(-step.requantizer.shift.astype(np.float64))
    bind(b, step.output, times(b, _accumulate(b, step), ratio), 0, step.requantizer)


def _accumulate(b: Builder, step: Gemm) -> ir.Value:
    """(input - zero_point) @ weight + bias, float64; by way of float32 where that is exact."""
    x, n = b.plan(step.input), step.weight.shape[1]
    weight = store_weight(b, step.weight, step.stored, step.transposed)
    bias = np.zeros(n, np.int32) if step.bias is None else step.bias
    farthest = max(x.zero_point, x.high - x.zero_point)
    reach = np.abs(step.weight.astype(np.int64)).sum(axis=0) * farthest
    if bias.any() and (reach + np.abs(bias.astype(np.int64))).max() < FLOAT_INTEGERS:
        one = b.real(1)
        operands = [b.codes(step.input), weight, one, one, b.zero_point(x), None, b.real(bias)]
        like = ("MatMul", [b.codes(step.input), weight])
        acc = b.vendor_node("MatMulIntegerToFloat", operands, None, like, ir.DataType.FLOAT)
        return exact.cast(b, acc, ir.DataType.DOUBLE)
    acc = b.node("MatMulInteger", [b.codes(step.input), weight, b.zero_point(x)])
    return plus(b, exact.cast(b, acc, ir.DataType.DOUBLE), bias)


def add(b: Builder, step: Add) -> None:
    """Both operands times their multiplier, one rounding; none if the multipliers are integers."""
    unit = 2.0 ** -float(step.requantizer.shift)
    shares, offset = [], 0.0
    for name, multiplier in zip((step.a, step.b), step.multipliers, strict=True):
        shares.append(times(b, in_double(b, name), multiplier * unit))
        offset -= multiplier * unit * (b.plan(name).zero_point + b.moved.get(name, 0))
    rounding: Rounding = "none" if unit == 1 else "even"
    bind(b, step.output, b.node("Add", shares), offset, step.requantizer, rounding)


def in_double(b: Builder, name: str) -> ir.Value:
    """The codes of `name` as float64."""
    if name not in b.doubles:
        b.doubles[name] = exact.cast(b, b.codes(name), ir.DataType.DOUBLE)
    return b.doubles[name]


def times(b: Builder, value: ir.Value, factor: npt.ArrayLike) -> ir.Value:
    """value * factor; [] or [channels]."""
    if np.all(np.asarray(factor) == 1):
        return value
    return b.node("Mul", [value, b.constant(factor, np.float64, "s")])


def plus(b: Builder, value: ir.Value, offset: npt.ArrayLike) -> ir.Value:
    """value + offset; [] or [channels]."""
    if not np.any(offset):
        return value
    return b.node("Add", [value, b.constant(offset, np.float64, "c")])


def bind(
    b: Builder,
    name: str,
    value: ir.Value,
    offset: npt.ArrayLike,
    requantizer: Requantizer,
    rounding: Rounding = "even",
) -> None:
    """Bind the codes of value + offset, float64 and exact, to `name`: uint8 or uint16.

    Those of 16 bits become integers only where something but these steps reads them.
    rounding: "none" of integers; "cast" where there are no ties, so that a half is added and the
    Cast to uint8 cuts off what is behind the point.
    """
    small, far = requantizer.dtype is np.uint8, b.moved.get(name, 0.0)
    half = 0.5 if rounding == "cast" and small else 0.0
    moved = np.asarray(offset) + (requantizer.zero_point + half + far)
    total = plus(b, value, moved)  # a zero point is even: it commutes with rounding
    if rounding != "none" and not half and not far:
        total = b.node("Round", [total])
    limits = (requantizer.low, requantizer.high)
    ends = (b.constant(limit + half + far, np.float64, "c") for limit in limits)
    clipped = b.node("Clip", [total, *ends])
    dtype = ir.DataType.from_numpy(np.dtype(requantizer.dtype))
    if small or name in b.exposed:
        b.bind_codes(name, exact.cast(b, clipped, dtype))
    else:
        b.doubles[name] = clipped
        b.bind_late(Ref(name, True), clipped, lambda: exact.cast(b, plus(b, clipped, -far), dtype))
