"""Target `onnx-strict`: no float tensor between the boundaries, standard operators only.

ConvInteger, MatMulInteger and int32/int64 Mul, Add, Div, Mod, Clip: every step exactly as the
integer program defines it, so it doubles as proof that the fast target is right. It is meant for
integer-only accelerators; onnxruntime runs it many times slower than target `onnx`.
"""

from __future__ import annotations

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
from ptq.targets import boundary, exact, normalize, softmax
from ptq.targets.build import Builder, Emitter, print_program
from ptq.targets.names import Io
from ptq.targets.storage import store_operand
from ptq.targets.window import window


def emit(program: Program, *, io: Io = "float") -> ir.Model:
    """Print `program` with integer operators only; bit-exact.

    io: 'float' keeps the float model's boundary; 'integer' makes codes of it, whose scale and
    zero point are in the metadata as `ptq.codes.<name>`.

    Raises:
        UnsupportedModelError: a step that has no form here.
    """
    return print_program(program, STEPS, io)


def _convolve(b: Builder, step: Convolve) -> None:
    spatial = step.weight.ndim - 2
    acc = b.node("ConvInteger", _operands(b, step), window(step))
    codes = exact.requantize(b, acc, step.requantizer, bias=step.bias, trailing=spatial)
    b.bind_codes(step.output, codes)


def _gemm(b: Builder, step: Gemm) -> None:
    acc = b.node("MatMulInteger", _operands(b, step))
    bias = 0 if step.bias is None else step.bias
    b.bind_codes(step.output, exact.requantize(b, acc, step.requantizer, bias=bias))


def _operands(b: Builder, step: Convolve | Gemm) -> list[ir.Value]:
    weight, zero = store_operand(b, step)
    zeros = [b.constant(zero, zero.dtype, "z")] if zero else []
    return [b.codes(step.input), weight, b.zero_point(b.plan(step.input)), *zeros]


def _matmul(b: Builder, step: MatMul) -> None:
    zero_points = [b.zero_point(b.plan(name)) for name in (step.a, step.b)]
    acc = b.node("MatMulInteger", [b.codes(step.a), b.codes(step.b), *zero_points])
    b.bind_codes(step.output, exact.requantize(b, acc, step.requantizer))


STEPS: dict[type, Emitter] = {
    Quantize: boundary.quantize,
    Dequantize: boundary.dequantize,
    Convolve: _convolve,
    Gemm: _gemm,
    MatMul: _matmul,
    Add: exact.add,
    Multiply: exact.multiply,
    Lookup: exact.lookup,
    Mean: exact.mean,
    Softmax: softmax.in_integers,
    Normalize: normalize.in_integers,
    Apply: boundary.apply,
}
