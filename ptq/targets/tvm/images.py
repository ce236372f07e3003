"""Channels-last images as fast convolutions read them: padded, and aligned where they must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptq.integer.program import Convolve
from ptq.kernels.dot import QUAD
from ptq.kernels.movement import Copy, Fill
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


def padded(state: Lowering, step: Convolve, groups: int, alignment: int) -> Image:
    """The input with its zero point around it: a copy if there is padding, of whatever kind.

    alignment: of every group's channels, in bytes.
    """
    samples, every, *sizes = state.shape(step.input)
    rows, width = sizes if len(sizes) == 2 else (1, *sizes)
    top, left, bottom, right = step.pads
    tall, wide = rows + top + bottom, width + left + right
    channels = every // groups
    room = -(-channels // alignment) * alignment
    pixel = groups * room
    source = state.codes(step.input)
    if any(step.pads) or room != channels:
        made = state.scratch(f"{step.name}/padded", samples * tall * wide * pixel)
        if any(step.pads):
            zero = state.plan(step.input).zero_point
            state.call(step.name, Fill(View((samples * tall * wide * pixel,), (1,)), zero), made)
        shape = (samples, rows, width, groups, channels)
        inside = View(
            shape, (tall * wide * pixel, wide * pixel, pixel, room, 1), (top * wide + left) * pixel
        )
        dense = View(shape, (rows * width * every, width * every, every, channels, 1))
        state.call(step.name, Copy(dense, inside), source, made)
        source = made
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            (tall, wide), step.weight.shape[2:], step.dilations, step.strides, strict=True
        )
    ]
    return Image(source, samples, room, tall * wide * pixel, wide * pixel, pixel, room, *out)
