"""Depthwise convolution by four rows at a time, where a dot product adds four products in a lane.

A *quad* is what four rows have at one column of one channel. Those of a strip of rows are made
once and lie in the first-level cache; the windows of all outputs in the strip read them, each with
weights where its own rows are, and zeros elsewhere. Two outputs below each other, three taps each:

    rows      x0 x1 x2 x3
    weights   w0 w1 w2  0    and    0 w0 w1 w2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, cache_lines
from ptq.kernels.dot import ISAS, QUAD
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.quad_vectors import WIDTHS, Width
from ptq.kernels.quad_window import Tile, Window
from ptq.kernels.requantize import Rounding
from ptq.kernels.saturation import VECTORS
from ptq.kernels.vectors import span
from ptq.kernels.view import View


@dataclass(frozen=True)
class Part:
    """Blocks of channels in vectors of one width, from channel `first` on.

    lane: which of all lanes is their first. The last block begins so early that it ends with
    channel `channels`.
    """

    width: Width
    first: int
    blocks: int
    lane: int
    channels: int

    @property
    def order(self) -> Array:
        """The channel of every lane: [blocks, vectors, lanes]."""
        starts = self.first + np.arange(self.blocks) * self.width.channels
        return (
            np.minimum(starts, self.channels - self.width.channels)[:, None, None]
            + self.width.order
        )


@dataclass(frozen=True)
class Block:
    """What an iteration works on: its first channel and lane, and the corner of its window in x."""

    width: Width
    channel: Expr
    lane: Expr
    corner: Expr


@dataclass(frozen=True)
class DepthwiseQuads:
    """y = requantize(bias + sum x * weight), channel by channel; the zero point is in the bias.

    x: where the pixels of the padded image begin, [samples, rows, width]. y: the same of the
    outputs. A pixel's channels lie beside each other.
    """

    isa: str
    tile: Tile
    window: Window
    channels: int
    rounding: Rounding
    x: View
    y: View

    @property
    def parts(self) -> list[Part]:
        """Blocks of the widest vectors, and at most one narrower kind, which half of them take."""
        widths = [w for w in WIDTHS[self.isa] if w.channels <= self.channels]
        found: list[Part] = []
        first = lane = 0
        for width in widths[:2]:
            rest = self.channels - first
            last = width is widths[:2][-1] or rest % width.channels > width.channels // 2
            blocks = -(-rest // width.channels) if last else rest // width.channels
            if blocks > 0:
                found.append(Part(width, first, blocks, lane, self.channels))
            first, lane = first + blocks * width.channels, lane + blocks * width.channels
        return found

    @property
    def order(self) -> Array:
        """The channel of every lane."""
        return np.concatenate([part.order.reshape(-1) for part in self.parts])

    @property
    def products(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Dot products of one column of the window, for a tile's outputs of one column."""
        return self.window.products(self.tile.rows)

    def arranged(self, weight: Array) -> Array:
        """int8 [channels, taps down, taps across] in the order in which they are read, flat.

        That is [blocks, vectors, across, products, lanes, 4] for every part.
        """
        rows = np.concatenate([weight, 0 * weight[:, :1]], axis=1)  # tap -1 is the last
        taps = list(self.products.values())
        found = [rows[part.order][:, :, :, taps] for part in self.parts]
        return np.concatenate([part.transpose(0, 1, 5, 3, 2, 4).reshape(-1) for part in found])

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int8, `arranged`; bias and scales by `order`; x uint8, y codes."""
        lanes = self.order.size
        return (
            Parameter("weight", "int8", lanes * self._lane_bytes),
            Parameter("bias", "int32", lanes),
            *self.rounding.scales(lanes),
            Parameter("x", "uint8", self.x.size - 1 + self.channels),
            Parameter("y", self.rounding.dtype, self.y.size - 1 + self.channels),
        )

    @property
    def _lane_bytes(self) -> int:
        """Of weights."""
        return self.window.taps[1] * len(self.products) * QUAD

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """Strip by strip; the last ones begin earlier, and write the same codes once more."""
        rows, columns, parts = self.tile.rows, self.tile.columns, self.parts
        blocks = sum(part.blocks for part in parts)
        samples, height, width = self.y.shape
        extents = [samples, -(-height // rows), -(-width // columns), blocks]
        work = rows * columns * int(np.prod(self.window.taps)) * parts[0].width.channels
        with on.nest(extents, work, fused=4) as (sample, down, across, block):
            row = T.min(down * rows, T.int32(height - rows))
            column = T.min(across * columns, T.int32(width - columns))
            self._some(on, buffers, parts, (sample, row, column), block)

    def _some(
        self, on: Binding, buffers: Sequence[Buffer], parts: Sequence[Part],
        place: tuple[Expr, Expr, Expr], number: Expr,
    ) -> None:  # fmt: skip
        """A strip of the part that block `number` is in."""
        part, *others = parts
        if others:
            with T.If(number < part.blocks):
                with T.Then():
                    self._some(on, buffers, [part], place, number)
                with T.Else():
                    self._some(on, buffers, others, place, number - part.blocks)
            return
        size = part.width.channels
        channel = T.min(part.first + number * size, T.int32(self.channels - size))
        sample, row, column = place
        below, beside = self.window.strides
        corner = self.x.at([sample, row * below, column * beside]) + channel
        block = Block(part.width, channel, part.lane + number * size, corner)
        self._strip(on, buffers, block, place)

    def _strip(
        self, on: Binding, buffers: Sequence[Buffer], block: Block, place: tuple[Expr, Expr, Expr]
    ) -> None:
        """Tile by tile, from the same quads."""
        quads = self._quads(on, buffers[-2], block)
        (sample, row, column), tile = place, self.tile
        with T.serial(0, -(-tile.columns // tile.pixels)) as number:
            first = T.min(number * tile.pixels, T.int32(tile.columns - tile.pixels))
            sums = on.local("int32", tile.rows * tile.pixels * block.width.channels)
            with T.serial(0, VECTORS) as vector:
                self._add(on, buffers, block, quads, (first, vector), sums)
            self._finish(buffers, block, sums, (sample, row, column + first))

    def _quads(self, on: Binding, x: Buffer, block: Block) -> Buffer:
        """[columns, quads, vectors] of a strip."""
        by_rows = self.window.quads(self.tile.rows)
        width, size = self.window.width(self.tile.columns), block.width.size_bytes
        made = cache_lines(on, "uint8", width * len(by_rows) * VECTORS * size)
        with T.serial(0, width) as column:
            for number, rows in enumerate(by_rows):
                starts = [
                    block.corner + row * self.x.strides[1] + column * self.x.strides[2]
                    for row in rows
                ]
                four = [T.Bind(x[span(start, block.width.channels)]) for start in starts]
                for vector, quad in enumerate(block.width.quads(four)):
                    at = ((column * len(by_rows) + number) * VECTORS + vector) * size
                    T.buffer_store(made, quad, [span(at, size)])
        return made

    def _add(
        self, on: Binding, buffers: Sequence[Buffer], block: Block, quads: Buffer,
        where: tuple[Expr, Expr], sums: Buffer,
    ) -> None:  # fmt: skip
        """All sums of one vector of a tile, column by column of the window."""
        weight, bias, *_ = buffers
        (first, vector), lanes, size = where, block.width.lanes, block.width.size_bytes
        outputs = list(np.ndindex(self.tile.rows, self.tile.pixels))
        acc = on.local("int32", len(outputs) * lanes)
        at = {output: span(i * lanes, lanes) for i, output in enumerate(outputs)}
        lane = block.lane + vector * lanes
        for output in outputs:
            T.buffer_store(acc, bias[span(lane, lanes)], [at[output]])
        products = list(self.products)
        with T.serial(0, self.window.taps[1]) as tap:
            start = lane * self._lane_bytes + tap * (len(products) * size)
            for quad in range(len(self.window.quads(self.tile.rows))):
                codes = [
                    T.Bind(quads[span(self._quad(first + p, tap, quad, vector) * size, size)])
                    for p in range(self.tile.pixels)
                ]
                for number, (_, row) in enumerate(products):
                    if products[number][0] != quad:
                        continue
                    factors = T.Bind(weight[span(start + number * size, size)])
                    for p, code in enumerate(codes):
                        total = block.width.dot(acc[at[row, p]], code, factors)
                        T.buffer_store(acc, total, [at[row, p]])
        for i, output in enumerate(outputs):
            place = (i * VECTORS + vector) * lanes
            T.buffer_store(sums, acc[at[output]], [span(place, lanes)])

    def _quad(self, pixel: Expr, tap: Expr, quad: int, vector: Expr) -> Expr:
        """Which vector of a strip an output needs for a column of its window."""
        column = pixel * self.window.strides[1] + tap * self.window.dilations[1]
        return (column * len(self.window.quads(self.tile.rows)) + quad) * VECTORS + vector

    def _finish(
        self, buffers: Sequence[Buffer], block: Block, sums: Buffer, place: tuple[Expr, Expr, Expr]
    ) -> None:
        """Requantise and store."""
        _, _, *scales, _, y = buffers
        (sample, row, column), lanes = place, block.width.lanes
        at = [span(block.lane + vector * lanes, lanes) for vector in range(VECTORS)]
        with T.serial(0, self.tile.rows) as below:
            for beside in range(self.tile.pixels):
                first = (below * self.tile.pixels + beside) * VECTORS
                some = [sums[span((first + vector) * lanes, lanes)] for vector in range(VECTORS)]
                codes = block.width.codes(some, scales, at, self.rounding)
                start = self.y.at([sample, row + below, column + beside]) + block.channel
                T.buffer_store(y, codes, [span(start, block.width.channels)])

    def _unarranged(self, weight: Array) -> Array:
        """int64 [channels, taps down, taps across]."""
        tall, wide = self.window.taps
        taps = np.zeros((self.channels, tall, wide), np.int64)
        for part in self.parts:
            size = part.order.size * self._lane_bytes
            shape = (-1, VECTORS, wide, len(self.products), part.width.lanes, QUAD)
            found = weight[part.lane * self._lane_bytes :][:size].reshape(shape)
            for number, places in enumerate(self.products.values()):
                for byte, tap in enumerate(places):
                    if tap >= 0:
                        moved = found[:, :, :, number, :, byte].transpose(0, 1, 3, 2)
                        taps[part.order, tap] = moved
        return taps

    def oracle(self, weight: Array, bias: Array, *arrays: Array) -> Array:
        """Tap by tap in int64; y flat, zeros where nothing is written."""
        *scales, x = arrays
        taps = self._unarranged(weight)
        by_channel = [np.empty(self.channels, array.dtype) for array in (bias, *scales)]
        for found, array in zip(by_channel, (bias, *scales), strict=True):
            found[self.order] = array
        first, *factors = by_channel
        out: Array = np.zeros(self.parameters()[-1].size, self.rounding.dtype)
        (below, beside), (down, right) = self.window.strides, self.window.dilations
        for sample, row, column in np.ndindex(self.y.shape):
            acc: Array = first.astype(np.int64)
            for i, j in np.ndindex(self.window.taps):
                at = self.x.at([sample, row * below + i * down, column * beside + j * right])
                codes = x[at : at + self.channels].astype(np.int64) - ISAS[self.isa].offset
                acc = acc + taps[:, i, j] * codes
            at = self.y.at([sample, row, column])
            out[at : at + self.channels] = self.rounding.vector_oracle(acc, *factors)
        return out
