"""Target `onnx-qdq`: float operators between DequantizeLinear and QuantizeLinear.

The form that TensorRT, OpenVINO, QNN and onnxruntime's own fusions read. All scales are the plan's.

Exact in onnxruntime, code by code: Quantize, Dequantize, Convolve and Gemm (the weight scales are
chosen so that the fused multiplier equals M / 2^S), Lookup and everything that only moves codes.
May differ by one code: Add, Multiply, MatMul, Mean (their real ratio is not the short one) and
Softmax (float exponentials); and, in a runtime that does not fuse, every rounding tie.

- Weights of at most four bits are stored packed and decoded to int8 in front of their
  DequantizeLinear (`storage`); onnxruntime folds that and runs int8. A DequantizeLinear that reads
  INT4 itself would make it run the layer in float.
- A Lookup stays a Gather on codes: the table is all that the program knows of the function. Only
  tables that merely change the grid are written as DequantizeLinear, QuantizeLinear.
- A saturation narrower than uint8 (a fused Relu6, 4-bit activations) is a Clip on codes, because
  a float Clip would keep onnxruntime from fusing.
- onnxruntime does not fuse Sub, nor a Mean that is not over all spatial axes: these run as float.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.arithmetic import Requantizer, scales_for_ratio
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
    Program,
    Quantize,
    Softmax,
)
from ptq.plan import ActivationPlan
from ptq.targets import boundary, exact
from ptq.targets.build import Builder, Emitter, print_program
from ptq.targets.names import Io
from ptq.targets.rows import like_rows, rows_of
from ptq.targets.storage import store_weight

# Movements that onnxruntime runs on codes when it finds them between DequantizeLinear and
# QuantizeLinear; the others are applied to codes at once.
FLOAT_MOVES = {
    *("Concat", "Expand", "Flatten", "Gather", "MaxPool", "Reshape"),
    *("Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}


def emit(program: Program, *, io: Io = "float") -> ir.Model:
    """Print `program` in QDQ form; what is exact is listed at the top of this module.

    io: 'float' keeps the float model's boundary; 'integer' makes codes of it, whose scale and
    zero point are in the metadata as `ptq.codes.<name>`.

    Raises:
        UnsupportedModelError: a step that has no form here.
    """
    return print_program(program, STEPS, io)


def fused_scale(
    w_scale: npt.NDArray[np.float32],
    x: ActivationPlan,
    y: ActivationPlan,
    requantizer: Requantizer,
) -> npt.NDArray[np.float32]:
    """Weight scales that make x * w / y == M / 2^S in float32; the plan's where there are none."""
    ratio = np.broadcast_to(requantizer.ratio, w_scale.shape)
    scales, found = scales_for_ratio(ratio, x.scale, y.scale)
    return np.where(found, scales, w_scale).astype(np.float32)


def _weights(
    b: Builder,
    step: Convolve | Gemm,
    weight: ir.Value,
    bias: npt.NDArray[np.int32] | None,
    axis: int,
) -> list[ir.Value]:
    """Dequantised weight and bias."""
    x, y = b.plan(step.input), b.plan(step.output)
    scale = fused_scale(step.weight_scale, x, y, step.requantizer)
    scales = b.constant(scale, np.float32, f"{step.name}.weight_scale")
    zeros = b.constant(np.zeros(scale.shape), np.int8, "weight_zero_point")
    operands = [b.node("DequantizeLinear", [weight, scales, zeros], {"axis": axis})]
    if bias is not None:
        codes = b.constant(bias, np.int32, f"{step.name}.bias")
        unit = b.constant(scale * x.scale, np.float32, f"{step.name}.bias_scale")
        none = b.constant(np.zeros(scale.shape), np.int32, "bias_zero_point")
        operands.append(b.node("DequantizeLinear", [codes, unit, none], {"axis": 0}))
    return operands


def _convolve(b: Builder, step: Convolve) -> None:
    weight = store_weight(b, step.weight, step.stored)
    attributes = {
        "kernel_shape": step.weight.shape[2:],
        "strides": step.strides,
        "dilations": step.dilations,
        "pads": step.pads,
        "group": step.groups,
    }
    operands = [b.dequantize(step.input), *_weights(b, step, weight, step.bias, 0)]
    _quantize(b, step.output, b.node("Conv", operands, attributes))


def _gemm(b: Builder, step: Gemm) -> None:
    rows, (k, n) = b.codes(step.input), step.weight.shape
    plain = rows.shape is not None and len(rows.shape) == 2
    x = b.dequantize_codes(step.input, rows if plain else rows_of(b, rows, k))
    weight = store_weight(b, step.weight, step.stored, step.transposed)
    bias = np.zeros(n, np.int32) if step.bias is None else step.bias
    product = b.node("Gemm", [x, *_weights(b, step, weight, bias, 1)])
    codes = b.quantize(step.output, product)
    b.bind_codes(step.output, codes if plain else like_rows(b, codes, rows, n))


def _matmul(b: Builder, step: MatMul) -> None:
    operands = [b.dequantize(step.a), b.dequantize(step.b)]
    _quantize(b, step.output, b.node("MatMul", operands))


def _add(b: Builder, step: Add) -> None:
    op_type = "Add" if step.multipliers[1] >= 0 else "Sub"
    operands = [b.dequantize(step.a), b.dequantize(step.b)]
    _quantize(b, step.output, b.node(op_type, operands))


def _multiply(b: Builder, step: Multiply) -> None:
    operands = [b.dequantize(step.a), b.dequantize(step.b)]
    _quantize(b, step.output, b.node("Mul", operands))


def _mean(b: Builder, step: Mean) -> None:
    x = b.dequantize(step.input)
    if _is_sum(b, step):
        _quantize(b, step.output, _reduce(b, "ReduceSum", x, step))
    elif x.shape is not None and step.keepdims and step.axes == tuple(range(2, len(x.shape))):
        _quantize(b, step.output, b.node("GlobalAveragePool", [x]))
    else:
        _quantize(b, step.output, _reduce(b, "ReduceMean", x, step))


def _reduce(b: Builder, op_type: str, x: ir.Value, step: Mean) -> ir.Value:
    operands = [x, exact.int64(b, step.axes, "axes")]
    return b.node(op_type, operands, {"keepdims": int(step.keepdims)})


def _is_sum(b: Builder, step: Mean) -> bool:
    """True if the requantizer does not divide by the number of elements: a ReduceSum."""
    scales = float(b.plan(step.input).scale) / float(b.plan(step.output).scale)
    return step.count > 1 and float(step.requantizer.ratio) * step.count**0.5 > scales


def _lookup(b: Builder, step: Lookup) -> None:
    if step.function == "requantize":
        _quantize(b, step.output, b.dequantize(step.input))
    else:
        exact.lookup(b, step)


def _softmax(b: Builder, step: Softmax) -> None:
    probability = b.node("Softmax", [b.dequantize(step.input)], {"axis": step.axis})
    _quantize(b, step.output, probability)


def _apply(b: Builder, step: Apply) -> None:
    """Movement as QDQ where that is the custom; else as it is."""
    moved = [ref for ref in step.outputs if ref.codes]
    if step.op_type not in FLOAT_MOVES or len(moved) != len(step.outputs):
        boundary.apply(b, step)
        return
    operands = [
        None if ref is None else b.dequantize(ref.name) if ref.codes else b.value(ref)
        for ref in step.inputs
    ]
    for ref, value in zip(moved, boundary.append_copy(b, step, operands), strict=True):
        _quantize(b, ref.name, value)


def _quantize(b: Builder, name: str, value: ir.Value) -> None:
    b.bind_codes(name, b.quantize(name, value))


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
    Softmax: _softmax,
    Apply: _apply,
}
