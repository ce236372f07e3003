"""Channels-last images as fast convolutions read them: padded, and aligned where they must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptq.integer.program import Convolve
from ptq.kernels.dot import QUAD, Isa
from ptq.kernels.kernel import strides_of
from ptq.kernels.movement import Copy, Pad
from ptq.kernels.view import View, collapse
from ptq.targets.tvm.frames import Frame
from ptq.targets.tvm.lowering import Lowering, Operand


@dataclass(frozen=True)
class Image:
    """A padded image [samples, rows, width, groups, channels], and a window's walk over it.

    Bytes are between neighbours. channels: of a group, with what aligns the next one.
    corner: where the image begins, bytes into the operand.
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
    corner: int = 0

    @property
    def is_dense(self) -> bool:
        """True if the pixels that a window of one pixel visits follow one another."""
        strides = (self.sample_bytes, self.row_bytes, self.pixel_bytes)
        _, (walk,) = collapse([View((self.samples, self.out_rows, self.out_width), strides)])
        return walk.strides in ((), (self.pixel_bytes,))


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


def pixels_of(view: View) -> View:
    """Where the pixels [samples, rows, width] of a tensor [n, channels, *sizes] begin."""
    (samples, _, *sizes), (sample, _, *strides) = view.shape, view.strides
    rows, width = (1, *sizes)[-2:]
    row, pixel = (sample, *strides)[-2:]
    return View((samples, rows, width), (sample, row, pixel), view.offset)


def padded(state: Lowering, step: Convolve, groups: int, isa: Isa) -> Image:
    """The input with its zero point around it: a copy, if it is not framed by what is needed.

    Every group's channels begin where the instruction set wants them to.
    """
    channels = state.shape(step.input)[1] // groups
    room = -(-channels // isa.alignment) * isa.alignment
    if isa.by_thread:
        source, view = _by_one_kernel(state, step, groups, room)
    else:
        source, view = _framed(state, step)
    (samples, *sizes), (by_sample, by_row, by_pixel) = view.shape, view.strides
    rows, width = (
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            sizes, step.weight.shape[2:], step.dilations, step.strides, strict=True
        )
    )
    return Image(source, samples, room, by_sample, by_row, by_pixel, room, rows, width, view.offset)


def _framed(state: Lowering, step: Convolve) -> tuple[Operand, View]:
    """The input and its pixels, with those of the padding."""
    shape, wanted = state.shape(step.input), Frame.of(step)
    view, frame = state.view(step.input), state.frames.get(step.input, Frame())
    source = state.codes(step.input)
    if frame | wanted != frame or view.strides[1] != 1:
        made = state.scratch(f"{step.name}/padded", int(np.prod(wanted.outer(shape))))
        to = wanted.inside(shape)
        state.call(step.name, Copy(view, to), source, made)
        if any(step.pads):
            state.call(step.name, wanted.border(shape, state.plan(step.input).zero_point), made)
        source, view = made, to
    pixels = pixels_of(view)
    _, row, pixel = pixels.strides
    samples, rows, width, _ = wanted.outer(shape)
    corner = pixels.offset - wanted.top * row - wanted.left * pixel
    return source, View((samples, rows, width), pixels.strides, corner)


def _by_one_kernel(state: Lowering, step: Convolve, groups: int, room: int) -> tuple[Operand, View]:
    """The same for a GPU, which starts one kernel sooner than two."""
    shape = state.shape(step.input)
    frame = Frame.of(step)
    samples, tall, wide, every = frame.outer(shape)
    _, rows, width, _ = Frame().outer(shape)
    inner, outer = (
        (samples, rows, width, groups, every // groups),
        (samples, tall, wide, groups, room),
    )
    source = state.codes(step.input)
    if inner != outer:
        pad = Pad(inner, outer, (frame.top, frame.left), state.plan(step.input).zero_point)
        made = state.scratch(f"{step.name}/padded", pad.parameters()[1].size)
        state.call(step.name, pad, source, made)
        source = made
    return source, View((samples, tall, wide), strides_of(outer)[:3])
