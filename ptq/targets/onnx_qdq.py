"""Target `onnx-qdq`: float operators between DequantizeLinear and QuantizeLinear.

The form that TensorRT, OpenVINO, QNN and onnxruntime's own fusions read.

In onnxruntime every fused operator is exact, code by code: the scales around it are the plan's, or
neighbours of them for which the fused multiplier equals M / 2^S (`fused_scales`). So the scale of a
DequantizeLinear may differ from the QuantizeLinear's before it, by one part in thousands.
May differ by one code a step: Softmax (float exponentials), Normalize, and what onnxruntime does
not fuse and runs in float: Sub, and a Mean that is not over all spatial axes with keepdims. In a
runtime that fuses otherwise, or not at all, every rounding tie may.

- Weights of at most four bits are stored packed and decoded to int8 in front of their
  DequantizeLinear (`storage`); onnxruntime folds that and runs int8. A DequantizeLinear that reads
  INT4 itself would make it run the layer in float.
- Weights are int8 always, as those runtimes ask for: a model whose certificates are not all
  pair-safe saturates in onnxruntime on CPUs without VNNI (the other targets switch to uint8 there).
- A Lookup stays a Gather on codes: the table is all that the program knows of the function. Only
  tables that merely change the grid are written as DequantizeLinear, QuantizeLinear.
- A saturation narrower than uint8 (a fused Relu6, 4-bit activations) is a Clip on codes, because
  a float Clip would keep onnxruntime from fusing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

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
from ptq.targets import boundary, exact, normalize
from ptq.targets.build import Builder, Emitter, print_program
from ptq.targets.fused_scales import Operand, fused_scales
from ptq.targets.names import Io
from ptq.targets.rows import like_rows, rows_of
from ptq.targets.storage import store_weight
from ptq.targets.window import window

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


def _weighted(
    b: Builder,
    step: Convolve | Gemm,
    weight: ir.Value,
    bias: npt.NDArray[np.int32],
    axis: int,
) -> tuple[list[ir.Value], np.float32]:
    """Dequantised weight and bias, and the output's scale."""
    x, y = b.plan(step.input), b.plan(step.output)
    ratio = np.broadcast_to(step.requantizer.ratio, step.weight_scale.shape)
    (scale,), y_scale = fused_scales([Operand(ratio, x.scale)], y.scale)
    scales = b.constant(scale, np.float32, "s")
    zeros = b.constant(np.zeros(scale.shape), np.int8, "z")
    codes = b.constant(bias, np.int32, "b")
    unit = b.constant(scale * x.scale, np.float32, "s")
    none = b.constant(np.zeros(scale.shape), np.int32, "z")
    operands = [
        b.node("DequantizeLinear", [weight, scales, zeros], {"axis": axis}),
        b.node("DequantizeLinear", [codes, unit, none], {"axis": 0}),
    ]
    return operands, y_scale


def _convolve(b: Builder, step: Convolve) -> None:
    weight = store_weight(b, step.weight, step.stored)
    operands, y_scale = _weighted(b, step, weight, step.bias, 0)
    result = b.node("Conv", [b.dequantize(step.input), *operands], window(step))
    _quantize(b, step.output, result, y_scale)


def _gemm(b: Builder, step: Gemm) -> None:
    rows, (k, n) = b.codes(step.input), step.weight.shape
    plain = rows.shape is not None and len(rows.shape) == 2
    x = b.dequantize(step.input, rows if plain else rows_of(b, rows, k))
    weight = store_weight(b, step.weight, step.stored, step.transposed)
    bias = np.zeros(n, np.int32) if step.bias is None else step.bias
    operands, y_scale = _weighted(b, step, weight, bias, 1)
    codes = b.quantize(step.output, b.node("Gemm", [x, *operands]), y_scale)
    b.bind_codes(step.output, codes if plain else like_rows(b, codes, rows, n))


def _matmul(b: Builder, step: MatMul) -> None:
    _product(b, step, "MatMul")


def _multiply(b: Builder, step: Multiply) -> None:
    _product(b, step, "Mul")


def _product(b: Builder, step: MatMul | Multiply, op_type: str) -> None:
    first, y_scale = b.plan(step.a).scale, b.plan(step.output).scale
    (scale,), y_scale = fused_scales([Operand(step.requantizer.ratio, first)], y_scale)
    operands = [b.dequantize(step.a), b.dequantize(step.b, scale=np.float32(scale))]
    _quantize(b, step.output, b.node(op_type, operands), y_scale)


def _add(b: Builder, step: Add) -> None:
    unit = np.exp2(-step.requantizer.shift.astype(np.float64))
    shares = [Operand(np.asarray(abs(m) * unit, np.float32)) for m in step.multipliers]
    scales, y_scale = fused_scales(shares, b.plan(step.output).scale)
    operands = [
        b.dequantize(name, scale=np.float32(scale))
        for name, scale in zip((step.a, step.b), scales, strict=True)
    ]
    op_type = "Add" if step.multipliers[1] >= 0 else "Sub"
    _quantize(b, step.output, b.node(op_type, operands), y_scale)


def _mean(b: Builder, step: Mean) -> None:
    shape = b.codes(step.input).shape
    if shape is not None and step.keepdims and step.axes == tuple(range(2, len(shape))):
        share = Operand(step.requantizer.ratio, count=step.count)
        (scale,), y_scale = fused_scales([share], b.plan(step.output).scale)
        values = b.dequantize(step.input, scale=np.float32(scale))
        _quantize(b, step.output, b.node("GlobalAveragePool", [values]), y_scale)
        return
    operands = [b.dequantize(step.input), exact.int64(b, step.axes)]
    op_type = "ReduceSum" if _is_sum(b, step) else "ReduceMean"
    value = b.node(op_type, operands, {"keepdims": int(step.keepdims)})
    _quantize(b, step.output, value)


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
    scores = b.dequantize(step.input)
    if step.keep is not None:
        masked = b.constant(np.finfo(np.float32).min, np.float32, "c")
        scores = b.node("Where", [b.value(step.keep), scores, masked])
    probability = b.node("Softmax", [scores], {"axis": step.axis})
    _quantize(b, step.output, probability)


def _normalize(b: Builder, step: Normalize) -> None:
    _quantize(b, step.output, normalize.as_floats(b, step))


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


def _quantize(b: Builder, name: str, value: ir.Value, scale: np.float32 | None = None) -> None:
    b.bind_codes(name, b.quantize(name, value, scale))


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
    Normalize: _normalize,
    Apply: _apply,
}
