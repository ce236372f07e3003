"""Convolution by vectors of out channels over channels-last images that are padded already.

For every part of the window that is contiguous in memory (a *run*: a row of the window, or one
pixel), four bytes of the image are broadcast and multiplied with packed weights. A tile of `pixels`
outputs by `vectors` of out channels stays in registers until its sums are complete;
requantisation follows at once. A matrix product is the case of a window of one pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.dot import ISAS, QUAD, Isa
from ptq.kernels.kernel import Buffer, Expr, Parameter, local
from ptq.kernels.palette import UNIT, Decode, decode_unit, unit_bytes
from ptq.kernels.requantize import Rounding

Array = npt.NDArray[Any]
SLACK = 64  # bytes behind the image that may be read; they meet weights of zero


@dataclass(frozen=True)
class Tile:
    """What stays in registers: pixels x vectors accumulators; group: quads added at a time."""

    pixels: int
    vectors: int
    group: int


@dataclass(frozen=True)
class PackedConvolution:
    """y = requantize(bias + sum x * weight), the zero point's share being in the bias.

    x: [rows, width, channels] bytes, padded; `row_bytes` and `pixel_bytes` between neighbours.
    y: [out_rows, out_width, out] dense. runs: where the window's runs begin, bytes from its corner.
    run: bytes of a run. packed weights: [out blocks, runs, quads, vectors, lanes, 4].
    bits: of the weights' codes into a palette, decoded once a tile; 0 if weights are int8.
    """

    isa: str
    tile: Tile
    runs: tuple[int, ...]
    run: int
    row_bytes: int
    pixel_bytes: int
    out_rows: int
    out_width: int
    out: int
    rounding: Rounding
    bits: int = 0

    @property
    def how(self) -> Isa:
        """The instruction set."""
        return ISAS[self.isa]

    @property
    def quads(self) -> int:
        """Quads of a run, whole groups."""
        size = QUAD * self.tile.group
        return -(-self.run // size) * self.tile.group

    @property
    def blocks(self) -> int:
        """Blocks of out channels; the last may be cut."""
        return -(-self.out // self.block)

    @property
    def block(self) -> int:
        """Out channels of a tile."""
        return self.tile.vectors * self.how.lanes

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int8 or Decode's first two; bias int32 [channels], scales; x, y uint8."""
        channels = self.blocks * self.block
        last = (self.out_rows - 1) * self.row_bytes + (self.out_width - 1) * self.pixel_bytes
        reach = last + self.runs[-1] + self.quads * QUAD
        return (
            *self._weights(),
            Parameter("bias", "int32", channels),
            *self.rounding.scales(channels),
            Parameter("x", "uint8", reach),
            Parameter("y", "uint8", self.out_rows * self.out_width * self.out),
        )

    def _sorted(self, arrays: Sequence[Any]) -> tuple[Sequence[Any], Any, Sequence[Any], Any, Any]:
        """Weights, bias, scales, x and y out of the parameters in order."""
        weights = 2 if self.bits else 1
        *scales, x, y = arrays[weights + 1 :]
        return arrays[:weights], arrays[weights], scales, x, y

    def _weights(self) -> tuple[Parameter, ...]:
        if self.bits:
            return self.decode.parameters()[:2]
        size = self.blocks * self.block * len(self.runs) * self.quads * QUAD
        return (Parameter("weight", "int8", size),)

    @property
    def decode(self) -> Decode:
        """What makes this kernel's int8 weights from codes of a palette."""
        units = len(self.runs) * self.quads // UNIT
        return Decode(self.isa, self.bits, self.blocks, units, self.tile.vectors)

    def emit(self, *buffers: Buffer) -> None:
        """Tiles of a row; the last begins earlier, so that none is cut."""
        pixels = min(self.tile.pixels, self.out_width)
        tiles = -(-self.out_width // pixels)
        with T.parallel(self.blocks * self.out_rows) as job:
            block = tirx.floordiv(job, self.out_rows)
            row = tirx.floormod(job, self.out_rows)
            with T.serial(0, tiles) as tile:
                first = T.min(tile * pixels, T.int32(self.out_width - pixels))
                self._tile(buffers, pixels, block, row, first)

    def _tile(
        self, buffers: tuple[Buffer, ...], pixels: int, block: Expr, row: Expr, first: Expr
    ) -> None:
        weights, bias, scales, x, y = self._sorted(buffers)
        lanes, vectors, group = self.how.lanes, self.tile.vectors, self.tile.group
        acc = local("int32", pixels * vectors * lanes)
        for p in range(pixels):
            for v in range(vectors):
                start = bias[tirx.Ramp(block * self.block + v * lanes, 1, lanes)]
                T.buffer_store(acc, start, [self._lane(p, v)])
        corner = row * self.row_bytes + first * self.pixel_bytes
        for number, offset in enumerate(self.runs):
            panel = (block * len(self.runs) + number) * self.quads
            span = UNIT if self.bits else group
            with T.serial(0, self.quads // span) as step:
                quads = [step * span + q for q in range(span)]
                factors = [self._factors(weights, block, panel, quads, v) for v in range(vectors)]
                for p in range(pixels):
                    codes = [
                        T.Bind(self._quad(x, corner + p * self.pixel_bytes + offset + q * QUAD))
                        for q in quads
                    ]
                    for v, start in itertools.product(range(vectors), range(0, span, group)):
                        at, some = self._lane(p, v), slice(start, start + group)
                        total = self.how.dots(acc[at], codes[some], factors[v][some])
                        T.buffer_store(acc, total, [at])
        self._finish(acc, scales, y, pixels, block, row * self.out_width + first)

    def _factors(
        self, weights: Sequence[Buffer], block: Expr, panel: Expr, quads: list[Expr], vector: int
    ) -> list[Expr]:
        """The weights of one vector of channels for a group of quads; a unit if they are codes."""
        vectors, width = self.tile.vectors, QUAD * self.how.lanes
        if not self.bits:
            starts = [((panel + q) * vectors + vector) * width for q in quads]
            return [T.Bind(weights[0][tirx.Ramp(start, 1, width)]) for start in starts]
        codes, tables = weights
        rows = [((block * vectors + vector) * 4 + row) * width for row in range(4)]
        looked_up = [tables[tirx.Ramp(start, 1, width)] for start in rows]
        unit = tirx.floordiv(panel + quads[0], UNIT) * vectors + vector
        at = unit * unit_bytes(self.how, self.bits)
        return decode_unit(self.how, self.bits, codes, at, looked_up)

    def _lane(self, pixel: int, vector: int) -> Expr:
        lanes = self.how.lanes
        return tirx.Ramp((pixel * self.tile.vectors + vector) * lanes, 1, lanes)

    @staticmethod
    def _quad(x: Buffer, at: Expr) -> Expr:
        """Four codes as one int32."""
        return T.reinterpret("int32", x[tirx.Ramp(at, 1, QUAD)])

    def _finish(
        self,
        acc: Buffer,
        scales: Sequence[Buffer],
        y: Buffer,
        pixels: int,
        block: Expr,
        first: Expr,
    ) -> None:
        """Requantise and store; the last block's surplus channels are not stored."""
        lanes = self.how.lanes
        whole = self.out % lanes == 0
        for p in range(pixels):
            for v in range(self.tile.vectors):
                channel = block * self.block + v * lanes
                channels = tirx.Ramp(channel, 1, lanes)
                codes = self.rounding.vector(acc[self._lane(p, v)], scales, channels, lanes)
                start = (first + p) * self.out + channel
                if self.out % self.block == 0:
                    T.buffer_store(y, codes, [tirx.Ramp(start, 1, lanes)])
                elif whole:
                    with T.If(channel < self.out), T.Then():
                        T.buffer_store(y, codes, [tirx.Ramp(start, 1, lanes)])
                else:
                    self._store_some(y, codes, start, channel)

    def _store_some(self, y: Buffer, codes: Expr, start: Expr, channel: Expr) -> None:
        lanes = self.how.lanes
        some = local("uint8", lanes)
        T.buffer_store(some, codes, [tirx.Ramp(0, 1, lanes)])
        with T.serial(0, lanes) as lane, T.If(channel + lane < self.out), T.Then():
            T.buffer_store(y, some[lane], [start + lane])

    def oracle(self, *arrays: Array) -> Array:
        """Unpacks the weights and multiplies in int64."""
        weights, bias, scales, x, _ = self._sorted([*arrays, None])
        weight = self.decode.oracle(*weights) if self.bits else weights[0]
        lanes = self.how.lanes
        shape = (self.blocks, len(self.runs), self.quads, self.tile.vectors, lanes, QUAD)
        by_channel = weight.reshape(shape).transpose(0, 3, 4, 1, 2, 5).astype(np.int64)
        rows = by_channel.reshape(self.blocks * self.block, len(self.runs), -1)
        out = np.zeros((self.out_rows, self.out_width, self.out), np.uint8)
        for row, column in np.ndindex(self.out_rows, self.out_width):
            corner = row * self.row_bytes + column * self.pixel_bytes
            acc = bias.astype(np.int64)
            for number, offset in enumerate(self.runs):
                start = corner + offset
                window = x[start : start + rows.shape[2]].astype(np.int64) - self.how.offset
                acc = acc + rows[:, number, :] @ window
            out[row, column] = self.rounding.vector_oracle(acc, *scales)[: self.out]
        return out


def pack(rows: Array, kernel: PackedConvolution) -> Array:
    """int8 [out, runs, run bytes] -> the kernel's order, zeros where there is nothing."""
    lanes = kernel.how.lanes
    shape = (kernel.blocks * kernel.block, len(kernel.runs), kernel.quads * QUAD)
    full = np.zeros(shape, np.int8)
    full[: rows.shape[0], :, : rows.shape[2]] = rows
    split = full.reshape(
        kernel.blocks, kernel.tile.vectors, lanes, len(kernel.runs), kernel.quads, QUAD
    )
    return np.ascontiguousarray(split.transpose(0, 3, 4, 1, 2, 5))
