"""Channels-last images as fast convolutions read them: padded, and aligned where they must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptq.integer.program import Convolve
from ptq.kernels.dot import QUAD, Isa
from ptq.kernels.kernel import strides_of
from ptq.kernels.movement import Copy, Fill, Pad
from ptq.kernels.view import View
from ptq.targets.tvm.lowering import Lowering, Operand


@dataclass(frozen=True)
class Image:
    """A padded image [samples, rows, width, groups, channels], and a window's walk over it.

    Bytes are between neighbours. channels: of a group, with what aligns the next one.
    """

    operand: Operand
    samples: int
    channels: int
    sample_bytes: int
    row_bytes: int
    pixel_bytes: int
    group_bytes: int
    out_rows: int
    out_width: int


def as_image(step: Convolve) -> Convolve:
    """A 1-d convolution as one over images of one row."""
    if step.weight.ndim == 4:
        return step
    (stride,), (dilation,), (before, after) = step.strides, step.dilations, step.pads
    return replace(
        step,
        weight=step.weight[:, :, None, :],
        strides=(1, stride),
        dilations=(1, dilation),
        pads=(0, before, 0, after),
    )


def in_quads(step: Convolve) -> Convolve:
    """A depthwise convolution as one of groups of four channels, with diagonal weights.

    A sum of four products has one that counts: as many instructions as one product at a time
    takes, and codes are loaded four at once.
    """
    channels, _, *window = step.weight.shape
    blocks = np.zeros((channels // QUAD, QUAD, QUAD, *window), np.int8)
    for channel in range(QUAD):
        blocks[:, channel, channel] = step.weight[channel::QUAD, 0]
    weight = blocks.reshape(channels, QUAD, *window)
    return replace(step, weight=weight, groups=channels // QUAD)


def padded(state: Lowering, step: Convolve, groups: int, isa: Isa) -> Image:
    """The input with its zero point around it: a copy if there is padding, of whatever kind.

    Every group's channels begin where the instruction set wants them to.
    """
    samples, every, *sizes = state.shape(step.input)
    rows, width = sizes if len(sizes) == 2 else (1, *sizes)
    top, left, bottom, right = step.pads
    tall, wide = rows + top + bottom, width + left + right
    channels = every // groups
    room = -(-channels // isa.alignment) * isa.alignment
    source = state.codes(step.input)
    if any(step.pads) or room != channels:
        pad = Pad(
            (samples, rows, width, groups, channels),
            (samples, tall, wide, groups, room),
            (top, left),
            state.plan(step.input).zero_point,
        )
        source = _pad(state, step, pad, one_kernel=isa.by_thread)
    pixel = groups * room
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            (tall, wide), step.weight.shape[2:], step.dilations, step.strides, strict=True
        )
    ]
    return Image(source, samples, room, tall * wide * pixel, wide * pixel, pixel, room, *out)


def _pad(state: Lowering, step: Convolve, pad: Pad, *, one_kernel: bool) -> Operand:
    """By one kernel; or by two loops without a test, which a CPU is faster at."""
    _, wanted = pad.parameters()
    source, made = state.codes(step.input), state.scratch(f"{step.name}/padded", wanted.size)
    if one_kernel:
        state.call(step.name, pad, source, made)
        return made
    state.call(step.name, Fill(View((wanted.size,), (1,)), pad.value), made)
    strides = strides_of(pad.outer)
    start = pad.before[0] * strides[1] + pad.before[1] * strides[2]
    inside, dense = View(pad.inner, strides, start), View(pad.inner, strides_of(pad.inner))
    state.call(step.name, Copy(dense, inside), source, made)
    return made
