"""Target `onnx`: QLinear operators, the fast form that stock onnxruntime runs.

Every step becomes one quantised operator whose scales make onnxruntime's float32 multiplier equal
to M / 2^S: the real scales where they do, else private ones (1 and M / 2^S) that mean the same.
Vendor operators are of the domain com.microsoft. Weights are stored packed (`storage`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.integer.arithmetic import Requantizer, onnx_ratio
from ptq.integer.program import (
    Add,
    Apply,
    Convolve,
    Dequantize,
    Gemm,
    Lookup,
    MatMul,
    Mean,
    Multiply,
    Normalize,
    Program,
    Quantize,
    Softmax,
)
from ptq.targets import boundary, exact, normalize, softmax, wide
from ptq.targets.build import Builder, Emitter, print_program
from ptq.targets.known_tables import is_sigmoid, leaky_slope
from ptq.targets.moved_codes import moved_codes
from ptq.targets.names import Io
from ptq.targets.rows import like_rows, rows_of
from ptq.targets.storage import store_integers, store_operand
from ptq.targets.window import window

IMAGE_RANK = 4
CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)
Scales = tuple[np.float32, npt.NDArray[np.float32], np.float32]


def emit(program: Program, *, io: Io = "float") -> ir.Model:
    """Print `program` as a QOperator model.

    io: 'float' keeps the float model's boundary; 'integer' makes codes of it, whose scale and
    zero point are in the metadata as `ptq.codes.<name>`.

    Raises:
        UnsupportedModelError: a step that has no form here.
    """
    return print_program(program, STEPS, io, moved_codes(program))


def matching_scales(
    x_scale: np.float32,
    w_scale: npt.NDArray[np.float32],
    y_scale: np.float32,
    requantizer: Requantizer,
) -> Scales:
    """Scales with x * w / y == M / 2^S in float32: the real ones if they do, else (1, M/2^S, 1)."""
    ratio = requantizer.ratio
    if (onnx_ratio(x_scale, w_scale, y_scale) == ratio).all():
        return x_scale, np.asarray(w_scale, np.float32), y_scale
    shape = np.broadcast_shapes(ratio.shape, np.shape(w_scale))
    one = np.float32(1)
    return one, np.broadcast_to(ratio, shape).astype(np.float32), one


def _convolve(b: Builder, step: Convolve) -> None:
    x, y = b.plan(step.input), b.plan(step.output)
    x_scale, w_scale, y_scale = matching_scales(
        x.scale, step.weight_scale, y.scale, step.requantizer
    )
    weight, zero = store_operand(b, step)
    operands = [
        b.codes(step.input),
        b.real(x_scale),
        b.zero_point(x),
        weight,
        b.constant(w_scale, np.float32, "s"),
        b.constant(zero, zero.dtype, "z"),
        b.real(y_scale),
        b.code(step.requantizer.zero_point),
        store_integers(b, step.bias, "b"),
    ]
    _saturated(b, step, b.node("QLinearConv", operands, window(step)))


def _gemm(b: Builder, step: Gemm) -> None:
    if step.requantizer.dtype is not np.uint8:
        wide.gemm(b, step)
        return
    x, y = b.plan(step.input), b.plan(step.output)
    x_scale, w_scale, y_scale = matching_scales(
        x.scale, step.weight_scale, y.scale, step.requantizer
    )
    rows = b.codes(step.input)
    matrix, zero = store_operand(b, step)
    weight = [
        matrix,
        b.constant(w_scale, np.float32, "s"),
        b.constant(np.full(w_scale.shape, zero), zero.dtype, "z"),
    ]
    result = [b.real(y_scale), b.code(step.requantizer.zero_point)]
    quantised = [b.real(x_scale), b.zero_point(x)]
    rank = None if rows.shape is None else len(rows.shape)
    if step.bias is None and rank is not None and rank > 1:
        operands = [rows, *quantised, *weight, *result]
        _saturated(b, step, b.node("QLinearMatMul", operands))
        return
    flat = rows if rank == 2 else rows_of(b, rows, step.weight.shape[0])
    bias = np.zeros(step.weight.shape[1], np.int32) if step.bias is None else step.bias
    operands = [flat, *quantised, *weight, store_integers(b, bias, "b")]
    like = ("MatMul", [flat, weight[0]])
    codes = b.vendor_node("QGemm", [*operands, *result], None, like)
    if rank != 2:
        codes = like_rows(b, codes, rows, step.weight.shape[1])
    _saturated(b, step, codes)


def _matmul(b: Builder, step: MatMul) -> None:
    x, w, y = b.plan(step.a), b.plan(step.b), b.plan(step.output)
    scales = matching_scales(x.scale, np.asarray(w.scale), y.scale, step.requantizer)
    operands = _binary(b, step, scales)
    _saturated(b, step, b.node("QLinearMatMul", operands))


def _add(b: Builder, step: Add) -> None:
    if any(b.plan(name).dtype is not np.uint8 for name in (step.a, step.b, step.output)):
        wide.add(b, step)
        return
    unit = np.float32(2.0) ** -np.float32(step.requantizer.shift)
    first, second = (np.float32(m) * unit for m in step.multipliers)
    scales = first, np.asarray(second, np.float32), np.float32(1)
    _vendor_binary(b, step, "QLinearAdd", scales)


def _multiply(b: Builder, step: Multiply) -> None:
    scales = np.float32(1), step.requantizer.ratio, np.float32(1)
    _vendor_binary(b, step, "QLinearMul", scales)


def _vendor_binary(b: Builder, step: Add | Multiply, op_type: str, scales: Scales) -> None:
    if step.requantizer.zero_point % 2:
        raise UnsupportedModelError(
            f"{step.name}: output zero point {step.requantizer.zero_point}; {op_type} rounds after "
            "adding it, so target onnx wants an even one: choose another grid"
        )
    operands = _binary(b, step, scales)
    like = ("Add", [operands[0], operands[3]])
    _saturated(b, step, b.vendor_node(op_type, operands, None, like))


def _binary(b: Builder, step: MatMul | Add | Multiply, scales: Scales) -> list[ir.Value]:
    """a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point."""
    a_scale, b_scale, y_scale = scales
    first = [b.codes(step.a), b.real(a_scale), b.zero_point(b.plan(step.a))]
    second = [b.codes(step.b), b.real(b_scale), b.zero_point(b.plan(step.b))]
    return [*first, *second, b.real(y_scale), b.code(step.requantizer.zero_point)]


def _lookup(b: Builder, step: Lookup) -> None:
    x, y = b.plan(step.input), b.plan(step.output)
    codes = b.codes(step.input)
    alpha = leaky_slope(step.table, x, y) if step.table.ndim == 1 else None
    if alpha is not None:
        _known_table(b, step, "LeakyRelu", {"alpha": float(alpha)})
    elif step.table.ndim == 1 and is_sigmoid(step.table, x, y):
        _known_table(b, step, "Sigmoid", None)
    elif codes.shape is not None and len(codes.shape) == IMAGE_RANK and _has_images(b):
        axis = CHANNELS_LAST.index((step.axis or 0) % IMAGE_RANK)
        last = b.node("Transpose", [codes], {"perm": CHANNELS_LAST})
        found = exact.look_up(b, step, last, axis)
        b.bind_codes(step.output, b.node("Transpose", [found], {"perm": CHANNELS_FIRST}))
    else:
        exact.lookup(b, step)


def _known_table(
    b: Builder, step: Lookup, function: str, attributes: dict[str, float] | None
) -> None:
    """The lookup by onnxruntime's own table of a function; three to five times faster."""
    x, y, codes = b.plan(step.input), b.plan(step.output), b.codes(step.input)
    operands = [codes, b.scale(x), b.zero_point(x), b.scale(y), b.zero_point(y)]
    found = b.vendor_node(f"QLinear{function}", operands, attributes, (function, [codes]))
    b.bind_codes(step.output, b.clip(found, y.low, y.high))


def _has_images(b: Builder) -> bool:
    """True if there are 2-d convolutions, whose channels onnxruntime moves last when it loads.

    A lookup is flat and would keep it from moving the Transposes through; with Transposes around
    it, the pairs between two convolutions cancel and none is left.
    """
    steps = b.program.steps
    return any(isinstance(s, Convolve) and s.weight.ndim == IMAGE_RANK for s in steps)


def _mean(b: Builder, step: Mean) -> None:
    """QLinearGlobalAveragePool over all spatial axes, else plain integer operators."""
    x = b.codes(step.input)
    rank = None if x.shape is None else len(x.shape)
    scale = np.float64(step.requantizer.ratio) * step.count
    if rank is None or rank < 3 or step.axes != tuple(range(2, rank)):
        exact.mean(b, step)
        return
    if np.float32(scale) != scale or step.requantizer.zero_point % 2:
        exact.mean(b, step)
        return
    operands = [
        x,
        b.real(scale),
        b.zero_point(b.plan(step.input)),
        b.real(1.0),
        b.code(step.requantizer.zero_point),
    ]
    like = ("GlobalAveragePool", [x])
    pooled = b.vendor_node("QLinearGlobalAveragePool", operands, {"channels_last": 0}, like)
    if not step.keepdims:
        pooled = b.node("Squeeze", [pooled, exact.int64(b, step.axes)])
    _saturated(b, step, pooled)


def _saturated(
    b: Builder, step: Convolve | Gemm | MatMul | Add | Multiply | Mean, codes: ir.Value
) -> None:
    requantizer = step.requantizer
    b.bind_codes(step.output, b.clip(codes, requantizer.low, requantizer.high))


STEPS: dict[type, Emitter] = {
    Quantize: boundary.quantize,
    Dequantize: boundary.dequantize,
    Convolve: _convolve,
    Gemm: _gemm,
    MatMul: _matmul,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Mean: _mean,
    Softmax: softmax.in_floats,
    Normalize: normalize.in_doubles,
    Apply: boundary.apply,
}
