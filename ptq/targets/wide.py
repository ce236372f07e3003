"""Steps with 16-bit codes, which no quantised operator of onnxruntime has, in float64.

Every number is an integer below 2^53 or one divided by a power of two, until the one rounding: the
codes are those of the reference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Gemm
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
    b.bind_codes(step.output, rounded(b, total, bias * ratio, step.requantizer))


def add(b: Builder, step: Add) -> None:
    """Both operands times their multiplier, one rounding."""
    unit = 2.0 ** -float(step.requantizer.shift)
    shares, offset = [], 0.0
    for name, multiplier in zip((step.a, step.b), step.multipliers, strict=True):
        codes = exact.cast(b, b.codes(name), ir.DataType.DOUBLE)
        shares.append(b.node("Mul", [codes, b.constant(multiplier * unit, np.float64, "s")]))
        offset -= multiplier * unit * b.plan(name).zero_point
    b.bind_codes(step.output, rounded(b, b.node("Add", shares), offset, step.requantizer))


def rounded(
    b: Builder, value: ir.Value, offset: float | np.ndarray, requantizer: Requantizer
) -> ir.Value:
    """Codes of value + offset, which is exact: float64 -> uint8 or uint16."""
    moved = np.asarray(offset + requantizer.zero_point)  # even: it commutes with rounding
    total = b.node("Add", [value, b.constant(moved, np.float64, "c")])
    low, high = (b.constant(v, np.float64, "c") for v in (requantizer.low, requantizer.high))
    clipped = b.node("Clip", [b.node("Round", [total]), low, high])
    return exact.cast(b, clipped, ir.DataType.from_numpy(np.dtype(requantizer.dtype)))
