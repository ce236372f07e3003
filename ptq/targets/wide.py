"""Steps with 16-bit codes, which no quantised operator of onnxruntime has, in float64.

Every number is an integer below 2^53 or one divided by a power of two, until the one rounding: the
codes are those of the reference. From one such step to the next they stay float64.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Gemm, Ref
from ptq.targets import exact
from ptq.targets.build import Builder
from ptq.targets.storage import store_weight


def gemm(b: Builder, step: Gemm) -> None:
    """MatMulInteger, and its int32 sums requantised to 16 bits."""
    weight = store_weight(b, step.weight, step.stored, step.transposed)
    operands = [b.codes(step.input), weight, b.zero_point(b.plan(step.input))]
    acc = exact.cast(b, b.node("MatMulInteger", operands), ir.DataType.DOUBLE)
    ratio = step.requantizer.multiplier * np.exp2(-step.requantizer.shift.astype(np.float64))
    bias = 0 if step.bias is None else step.bias
    total = b.node("Mul", [acc, b.constant(ratio, np.float64, "s")])
    bind_rounded(b, step.output, total, bias * ratio, step.requantizer)


def add(b: Builder, step: Add) -> None:
    """Both operands times their multiplier, one rounding."""
    unit = 2.0 ** -float(step.requantizer.shift)
    shares, offset = [], 0.0
    for name, multiplier in zip((step.a, step.b), step.multipliers, strict=True):
        share = b.constant(multiplier * unit, np.float64, "s")
        shares.append(b.node("Mul", [in_double(b, name), share]))
        offset -= multiplier * unit * b.plan(name).zero_point
    bind_rounded(b, step.output, b.node("Add", shares), offset, step.requantizer)


def in_double(b: Builder, name: str) -> ir.Value:
    """The codes of `name` as float64."""
    if name not in b.doubles:
        b.doubles[name] = exact.cast(b, b.codes(name), ir.DataType.DOUBLE)
    return b.doubles[name]


def bind_rounded(
    b: Builder, name: str, value: ir.Value, offset: float | np.ndarray, requantizer: Requantizer
) -> None:
    """Bind the codes of value + offset, float64 and exact, to `name`: uint8 or uint16.

    Those of 16 bits become integers only where something but these steps reads them.
    """
    moved = np.asarray(offset + requantizer.zero_point)  # even: it commutes with rounding
    total = b.node("Add", [value, b.constant(moved, np.float64, "c")])
    low, high = (b.constant(v, np.float64, "c") for v in (requantizer.low, requantizer.high))
    clipped = b.node("Clip", [b.node("Round", [total]), low, high])
    dtype = ir.DataType.from_numpy(np.dtype(requantizer.dtype))
    if requantizer.dtype is np.uint8 or name in b.exposed:
        b.bind_codes(name, exact.cast(b, clipped, dtype))
    else:
        b.doubles[name] = clipped
        b.bind_late(Ref(name, True), clipped, lambda: exact.cast(b, clipped, dtype))
