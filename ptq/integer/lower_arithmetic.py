"""Lower units that multiply and add: their integers, short multipliers and certificates."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ptq.errors import UnsupportedModelError
from ptq.integer import claims
from ptq.integer.arithmetic import (
    DOUBLE_BITS,
    FLOAT_BITS,
    Requantizer,
    exact_shift,
    onnx_ratio,
    short_multiplier,
)
from ptq.integer.lowering import Lowering
from ptq.integer.pairs import Pairs, convolution_pairs
from ptq.integer.program import Add, Certificate, Convolve, Gemm, MatMul, Mean, Multiply
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_bias
from ptq.plan import ActivationPlan, WeightPlan


def _requantizer(
    ratio: npt.ArrayLike, y: ActivationPlan, spare_bits: int = 0, bits: int = 24
) -> Requantizer:
    limit = exact_shift(y.zero_point, y.low, y.high) - spare_bits
    multiplier, shift = short_multiplier(np.asarray(ratio, np.float64), limit, bits)
    return Requantizer(multiplier, shift, y.zero_point, y.low, y.high)


def _integer_bias(
    state: Lowering, unit: Unit, scale: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    bias = state.plan.biases.get(unit.name)
    bias = unit_bias(unit) if bias is None else bias
    return np.clip(np.rint(bias / scale), -(2**30), 2**30).astype(np.int32)


def _weights(state: Lowering, unit: Unit) -> WeightPlan:
    if unit.name not in state.plan.weights:
        raise UnsupportedModelError(f"{unit.name}: the plan has no weights for this layer")
    return state.plan.weights[unit.name]


def lower_conv(state: Lowering, unit: Unit) -> None:
    """A convolution: int8 weights, int32 bias, one short multiplier a channel."""
    x, y, w = (
        state.need_codes(unit.inputs[0]),
        state.grid(unit.output),
        _weights(state, unit),
    )
    weight = w.decode()
    bias = _integer_bias(state, unit, w.scale.astype(np.float64) * float(x.scale))
    requantizer = _requantizer(onnx_ratio(x.scale, w.scale, y.scale), y)
    rows, groups = weight.reshape(len(weight), -1), claims.integer(unit.node, "group", 1)
    pairs = convolution_pairs(weight.shape, groups, x.high)
    state.certify(unit.name, rows, x, bias.astype(np.int64), requantizer, pairs)
    n = weight.ndim - 2
    ones = (1,) * n
    state.write(unit.output)
    state.steps.append(
        Convolve(
            unit.name, unit.inputs[0], unit.output, weight, bias, requantizer,
            strides=claims.integers(unit.node, "strides", ones),
            dilations=claims.integers(unit.node, "dilations", ones),
            pads=claims.integers(unit.node, "pads", (0,) * 2 * n),
            groups=groups, weight_scale=w.scale, stored=w,
        )
    )  # fmt: skip


def lower_gemm(state: Lowering, unit: Unit) -> None:
    """A product with a constant matrix, with or without bias."""
    x, y, w = (
        state.need_codes(unit.inputs[0]),
        state.grid(unit.output),
        _weights(state, unit),
    )
    transposed = unit_axis(unit) == 0
    weight = w.decode()
    weight = np.ascontiguousarray(weight.T) if transposed else weight
    has_bias = unit.bias is not None or unit.name in state.plan.biases
    bias = _integer_bias(state, unit, w.scale.astype(np.float64) * float(x.scale))
    requantizer = _requantizer(onnx_ratio(x.scale, w.scale, y.scale), y)
    pairs = Pairs.of(weight.shape[:1], x.high)
    state.certify(unit.name, weight.T, x, bias.astype(np.int64), requantizer, pairs)
    state.write(unit.output)
    state.steps.append(
        Gemm(
            unit.name, unit.inputs[0], unit.output, weight, bias if has_bias else None,
            requantizer, weight_scale=w.scale, stored=w, transposed=transposed,
        )
    )  # fmt: skip


def lower_matmul(state: Lowering, unit: Unit) -> None:
    """A product of two activations."""
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    scale = np.asarray(b.scale * np.float32(unit.factor))
    requantizer = _requantizer(onnx_ratio(a.scale, scale, y.scale), y)
    state.steps.append(MatMul(unit.name, unit.inputs[0], unit.inputs[1], unit.output, requantizer))
    inner = claims.static_dim(unit.node.inputs[0], -1) if unit.node.inputs[0] else None
    reach = [max(g.high - g.zero_point, g.zero_point - g.low) for g in (a, b)]
    bound = reach[0] * reach[1] * (inner or 1)
    note = "" if inner else "inner size is dynamic: the bound is for one element of it"
    state.certificates.append(Certificate(unit.name, bound, True, True, note))


def lower_add(state: Lowering, unit: Unit) -> None:
    """A sum or difference: two short ratios over one common shift."""
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    sign = -1 if unit.node.op_type == "Sub" else 1
    ratios = float(a.scale) / float(y.scale), sign * float(b.scale) / float(y.scale)
    wide = any(grid.dtype is not np.uint8 for grid in (a, b, y))
    reach = (2.0**16 if wide else 256.0) * (1 + abs(ratios[0]) + abs(ratios[1]))
    shift, bits = 0, DOUBLE_BITS - 2 if wide else FLOAT_BITS
    while reach * 2.0 ** (shift + 1) < 2**bits and shift < 20:
        shift += 1
    first, second = (round(r * 2**shift) for r in ratios)
    common = math.gcd(first, second, 1 << shift)
    first, second, shift = first // common, second // common, shift - common.bit_length() + 1
    requantizer = Requantizer(
        np.array(1, np.int64), np.array(shift, np.int64), y.zero_point, y.low, y.high
    )
    state.steps.append(
        Add(
            unit.name,
            unit.inputs[0],
            unit.inputs[1],
            unit.output,
            (first, second),
            requantizer,
        )
    )
    bound = max(a.high, b.high) * (abs(first) + abs(second))
    note = "in 64 bits, below 2^53" if wide else ""
    state.certificates.append(
        Certificate(unit.name, bound, True, True, note, accumulator_bits=64 if wide else 32)
    )


def lower_multiply(state: Lowering, unit: Unit) -> None:
    """An elementwise product."""
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    ratio = float(a.scale) * float(b.scale) / float(y.scale)
    requantizer = _requantizer(ratio, y, spare_bits=1)
    state.steps.append(
        Multiply(unit.name, unit.inputs[0], unit.inputs[1], unit.output, requantizer)
    )
    state.certificates.append(Certificate(unit.name, 255 * 255, True, True))


def lower_mean(state: Lowering, unit: Unit) -> None:
    """A mean or sum over static axes."""
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    axes = claims.reduced_axes(unit.node) or ()
    count = math.prod(claims.static_dim(unit.node.inputs[0], a) or 1 for a in axes)
    divisor = 1 if unit.node.op_type == "ReduceSum" else count
    bits = 24 - max(int(np.ceil(np.log2(count))), 0)
    requantizer = _requantizer(float(x.scale) / (divisor * float(y.scale)), y, bits=bits)
    keep = bool(claims.integer(unit.node, "keepdims", 1))
    state.steps.append(Mean(unit.name, unit.inputs[0], unit.output, axes, keep, count, requantizer))
    state.certificates.append(Certificate(unit.name, 255 * count, True, True))


def lower_window(state: Lowering, unit: Unit) -> None:
    """Average pooling is a depthwise convolution with weights of one."""
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    kernel = claims.integers(unit.node, "kernel_shape")
    channels, n, size = (
        claims.static_dim(unit.node.inputs[0], 1),
        len(kernel),
        np.prod(kernel),
    )
    weight = np.ones((channels or 1, 1, *kernel), np.int8)
    scale = np.full(len(weight), 1 / size, np.float32)
    requantizer = _requantizer(onnx_ratio(x.scale, scale, y.scale), y)
    bias = np.zeros(len(weight), np.int32)
    state.certify(
        unit.name,
        weight.reshape(len(weight), -1),
        x,
        bias.astype(np.int64),
        requantizer,
    )
    state.steps.append(
        Convolve(
            unit.name, unit.inputs[0], unit.output, weight, bias, requantizer,
            strides=claims.integers(unit.node, "strides", (1,) * n), dilations=(1,) * n,
            pads=claims.integers(unit.node, "pads", (0,) * 2 * n), groups=len(weight),
            weight_scale=scale,
        )
    )  # fmt: skip
