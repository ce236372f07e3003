"""Every step of the integer program as kernel calls: one function a class, one table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptq.integer import program as steps
from ptq.integer.arithmetic import Requantizer
from ptq.kernels import boundary, convolution, elementwise, normalization, reduction
from ptq.kernels.loops import LANES
from ptq.kernels.requantize import Rounding, channel_ratios, floats_are_exact
from ptq.kernels.softmax import Mask, Softmax
from ptq.kernels.view import View
from ptq.targets.tvm.fast import fast_convolution, fast_gemm
from ptq.targets.tvm.feeds import source_of
from ptq.targets.tvm.layout import view_of
from ptq.targets.tvm.lowering import Feed, Lowering, Operand, Result, Rule
from ptq.targets.tvm.moves import apply
from ptq.targets.tvm.products import fast_matmul

MEAN_LANES = (64, 32, 16)
"""Sums that stay in registers."""
NORM_LANES = 8


def quantize(state: Lowering, step: steps.Quantize) -> None:
    """Float input, row-major -> codes in their layout."""
    grid, shape = state.plan(step.value), state.shape(step.value)
    kernel = boundary.Quantize(
        view_of(shape, False), state.view(step.value), float(grid.scale),
        grid.zero_point, grid.low, grid.high,
        "fma" in state.features and 2**-60 < float(grid.scale) < 2**60,
    )  # fmt: skip
    state.call(step.name, kernel, Feed(step.value), state.codes(step.value))


def dequantize(state: Lowering, step: steps.Dequantize) -> None:
    """Codes -> float output, row-major; results that are joined first are written by that step."""
    if step.value not in {boundary.name for boundary in state.program.outputs}:
        return
    grid, shape = state.plan(step.value), state.shape(step.value)
    kernel = boundary.Dequantize(
        state.view(step.value), view_of(shape, False), float(grid.scale), grid.zero_point,
        state.dtype(step.value),
    )  # fmt: skip
    state.call(step.name, kernel, state.codes(step.value), Result(step.value))


def add(state: Lowering, step: steps.Add) -> None:
    """Operands broadcast to the output's shape."""
    shape = state.shape(step.output)
    kernel = elementwise.Add(
        state.view(step.a).broadcast(shape),
        state.view(step.b).broadcast(shape),
        state.view(step.output),
        step.multipliers,
        (state.plan(step.a).zero_point, state.plan(step.b).zero_point),
        Rounding.of(step.requantizer),
        (state.dtype(step.a), state.dtype(step.b)),
        64 if "avx512vnni" in state.features else 32 if "avx2" in state.features else 0,
    )
    operands = (state.codes(name) for name in (step.a, step.b, step.output))
    state.call(step.name, kernel, *operands)


def multiply(state: Lowering, step: steps.Multiply) -> None:
    """Operands broadcast to the output's shape."""
    shape = state.shape(step.output)
    exact = floats_are_exact(step.requantizer)
    kernel = elementwise.Multiply(
        state.view(step.a).broadcast(shape),
        state.view(step.b).broadcast(shape),
        state.view(step.output),
        (state.plan(step.a).zero_point, state.plan(step.b).zero_point),
        Rounding.of(step.requantizer),
        LANES if state.vectors and exact else 1,
    )
    operands = (state.codes(name) for name in (step.a, step.b, step.output))
    state.call(step.name, kernel, *operands)


def lookup(state: Lowering, step: steps.Lookup) -> None:
    """One table, or one a channel."""
    shape = state.shape(step.output)
    strides = [0] * len(shape)
    if step.axis is not None:
        strides[step.axis] = 256
    kernel = elementwise.Lookup(
        state.view(step.input), View(shape, tuple(strides)), state.view(step.output),
        state.dtype(step.output), "vbmi" in state.features,
    )  # fmt: skip
    table = state.constant(step.table.reshape(-1))
    state.call(step.name, kernel, table, state.codes(step.input), state.codes(step.output))


def mean(state: Lowering, step: steps.Mean) -> None:
    """The axes that stay are walked in the output's order, which may lack the others."""
    x, y = state.view(step.input), state.view(step.output)
    axes = {axis % len(x.shape) for axis in step.axes}
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    if step.keepdims:
        y = _pick(y, kept)
    stays = _pick(x, kept)
    fits = [lanes for lanes in MEAN_LANES if kept and lanes <= y.shape[-1]]
    neighbours = bool(kept) and stays.strides[-1] == y.strides[-1] == 1
    kernel = reduction.Mean(
        stays,
        _along(x, sorted(axes)),
        y,
        state.plan(step.input).zero_point,
        Rounding.of(step.requantizer),
        fits[0] if fits and neighbours and state.vectors else 1,
    )
    state.call(step.name, kernel, state.codes(step.input), state.codes(step.output))


def softmax(state: Lowering, step: steps.Softmax) -> None:
    """Rows are all axes but one."""
    views = state.view(step.input), state.view(step.output)
    axis = step.axis % len(views[0].shape)
    rest = [other for other in range(len(views[0].shape)) if other != axis]
    x, y = views
    mask, source = None, None if step.keep is None else source_of(state, step.keep)
    if source is not None:
        seen = source.view.broadcast(x.shape)
        mask = Mask(_pick(seen, rest), _along(seen, [axis]), source.dtype, source.inverted)
    kernel = Softmax(
        (_pick(x, rest), _pick(y, rest)), (_along(x, [axis]), _along(y, [axis])),
        step.numerator, step.high, mask,
    )  # fmt: skip
    operands: list[Operand] = [state.constant(step.exp_table.astype(np.int32))]
    operands += [] if source is None else [source.operand]
    state.call(step.name, kernel, *operands, state.codes(step.input), state.codes(step.output))


def normalize(state: Lowering, step: steps.Normalize) -> None:
    """Rows are all axes but the last."""
    x, y = state.view(step.input), state.view(step.output)
    *rest, last = range(len(x.shape))
    dense = x.strides[last] == y.strides[last] == 1 and x.shape[last] % NORM_LANES == 0
    kernel = normalization.Normalize(
        (_pick(x, rest), _pick(y, rest)), (_along(x, [last]), _along(y, [last])),
        state.plan(step.input).zero_point, step.centred, step.mean_bits, step.epsilon, step.shift,
        step.inverse_bits, Rounding.of(step.requantizer), state.dtype(step.input),
        NORM_LANES if dense and state.vectors else 1,
    )  # fmt: skip
    constants = (state.constant(part.astype(np.float64)) for part in (step.gain, step.offset))
    operands = (state.codes(name) for name in (step.input, step.output))
    state.call(step.name, kernel, *constants, *operands)


def _pick(view: View, axes: list[int]) -> View:
    """The view over some of its axes, at index 0 of the others."""
    shape, strides = (tuple(part[axis] for axis in axes) for part in (view.shape, view.strides))
    return replace(view, shape=shape, strides=strides)


def _along(view: View, axes: list[int]) -> View:
    """What such axes add to a place that the others give."""
    return replace(_pick(view, axes), offset=0)


def convolve(state: Lowering, step: steps.Convolve) -> None:
    """A fast kernel if there is one for this shape and processor."""
    refused = fast_convolution(state, step)
    if refused is None:
        return
    state.plain[step.name] = refused
    kernel = convolution.Convolve(
        state.view(step.input),
        state.view(step.output),
        step.weight.shape,
        step.strides,
        step.dilations,
        step.pads[: len(step.strides)],
        step.groups,
        state.plan(step.input).zero_point,
        Rounding.of(step.requantizer),
    )
    constants = _constants(state, step.requantizer, step.bias)
    state.call(
        step.name, kernel, state.constant(step.weight.reshape(-1)), *constants,
        state.codes(step.input), state.codes(step.output),
    )  # fmt: skip


def gemm(state: Lowering, step: steps.Gemm) -> None:
    """A fast kernel if there is one for this processor."""
    refused = fast_gemm(state, step)
    if refused is None:
        return
    state.plain[step.name] = refused
    a, y = state.view(step.input), state.view(step.output)
    b = View(step.weight.shape, (step.weight.shape[1], 1))
    zero_points = (state.plan(step.input).zero_point, 0)
    rounding = Rounding.of(step.requantizer)
    one = len(a.shape) == 1  # a vector: one row
    if one:
        a, y = (View((1, *v.shape), (v.size, *v.strides), v.offset) for v in (a, y))
    kernel = convolution.MatMul(
        a, b.broadcast((*y.shape[:-2], *b.shape)), y, zero_points, "int8", rounding
    )
    columns = step.weight.shape[1]
    bias = step.bias if step.bias is not None else np.zeros(columns, np.int32)
    constants = _constants(state, step.requantizer, bias)
    state.call(
        step.name, kernel, state.constant(step.weight.reshape(-1)), *constants,
        state.codes(step.input), state.codes(step.output),
    )  # fmt: skip


def matmul(state: Lowering, step: steps.MatMul) -> None:
    """Batched; the batch axes of the operands broadcast. Fast if the processor has a kernel."""
    refused = fast_matmul(state, step)
    if refused is None:
        return
    state.plain[step.name] = refused
    a, b, y = (state.view(name) for name in (step.a, step.b, step.output))
    batch = y.shape[:-2]
    kernel = convolution.MatMul(
        a.broadcast((*batch, *a.shape[-2:])),
        b.broadcast((*batch, *b.shape[-2:])),
        y,
        (state.plan(step.a).zero_point, state.plan(step.b).zero_point),
        "uint8",
        Rounding.of(step.requantizer),
    )
    constants = _constants(state, step.requantizer, np.zeros(y.shape[-1], np.int32))
    state.call(
        step.name, kernel, state.codes(step.b), *constants,
        state.codes(step.a), state.codes(step.output),
    )  # fmt: skip


def _constants(state: Lowering, requantizer: Requantizer, bias: np.ndarray) -> list[Operand]:
    """bias, multiplier and shift of every channel."""
    ratios = channel_ratios(requantizer, len(bias))
    return [state.constant(array) for array in (bias.astype(np.int32), *ratios)]


RULES: dict[type[steps.Step], Rule] = {
    steps.Quantize: quantize,
    steps.Dequantize: dequantize,
    steps.Convolve: convolve,
    steps.Gemm: gemm,
    steps.MatMul: matmul,
    steps.Add: add,
    steps.Multiply: multiply,
    steps.Lookup: lookup,
    steps.Mean: mean,
    steps.Softmax: softmax,
    steps.Normalize: normalize,
    steps.Apply: apply,
}
