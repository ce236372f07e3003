"""Convolution on tensor cores: an implicit GEMM of warps, straight from channels-last images.

mma.m16n8k32 (PTX ISA, "Matrix Fragments for mma.m16n8k32") multiplies 16 pixels by 32 codes with 32
weights by 8 channels. Lane 4 g + t of a warp holds, as bytes that are neighbours in memory,

    codes      a0, a2: pixel g, bytes 4 t and 16 + 4 t;  a1, a3: pixel g + 8, the same
    weights    b0, b1: channel g, bytes 4 t and 16 + 4 t
    sums       0, 1: pixel g, channels 2 t and 2 t + 1;  2, 3: pixel g + 8, the same

so codes are loaded as they lie in the image, and weights as they were packed, 8 bytes a lane; or 4
or 2 bytes of codes into a palette, which the lane looks up in its channel's table.
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

from ptq.kernels.binding import Binding, unravel
from ptq.kernels.kernel import Buffer, Expr, Parameter
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import in_order, pack
from ptq.kernels.palette import Palette, bits_of, index_rows
from ptq.kernels.palette_permute import look_up, pair_bytes, pair_selectors, pairs, unpaired
from ptq.kernels.requantize import Rounding

Array = npt.NDArray[Any]
LANES = 32
PIXELS, CHANNELS, STEP = 16, 8, 32  # of one mma
FRAGMENT_BYTES = 8  # weights of a lane
TABLE_BYTES = 16


@dataclass(frozen=True)
class WarpTile:
    """What stays in the registers of a warp: so many mma results, by pixels and by channels."""

    pixels: int
    channels: int


@dataclass(frozen=True)
class TensorConvolution:
    """y = requantize(bias + sum x * weight), as PackedConvolution; one group.

    packed weights: [runs, steps, blocks of 8 channels, 32 lanes, 2, 4], int8 or codes.
    bits: of the weights' codes, 4 or 2; 0 if weights are int8.
    """

    tile: WarpTile
    runs: tuple[int, ...]
    run: int
    row_bytes: int
    pixel_bytes: int
    out_rows: int
    out_width: int
    out: int
    rounding: Rounding
    samples: int = 1
    sample_bytes: int = 0
    bits: int = 0

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.samples * self.out_rows * self.out_width

    @property
    def steps(self) -> int:
        """Of a run, whole ones."""
        return -(-self.run // STEP)

    @property
    def tiles(self) -> tuple[int, int]:
        """Along pixels and along channels; the last are cut."""
        down = -(-self.pixels // (PIXELS * self.tile.pixels))
        return down, -(-self.out // (CHANNELS * self.tile.channels))

    @property
    def blocks(self) -> int:
        """Of 8 channels, in whole tiles."""
        return self.tiles[1] * self.tile.channels

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int8, or codes and tables; bias int32 [all blocks], scales; x uint8, y codes."""
        channels = self.blocks * CHANNELS
        last = (self.samples - 1) * self.sample_bytes
        last += (self.out_rows - 1) * self.row_bytes + (self.out_width - 1) * self.pixel_bytes
        return (
            *self._weights(),
            Parameter("bias", "int32", channels),
            *self.rounding.scales(channels),
            Parameter("x", "uint8", last + self.runs[-1] + self.steps * STEP),
            Parameter("y", self.rounding.dtype, self.pixels * self.out),
        )

    def _weights(self) -> tuple[Parameter, ...]:
        lanes = len(self.runs) * self.steps * self.blocks * LANES
        if not self.bits:
            return (Parameter("weight", "int8", lanes * FRAGMENT_BYTES),)
        return (
            Parameter("codes", "uint8", lanes * pair_bytes(self.bits)),
            Parameter("tables", "int8", self.blocks * CHANNELS * TABLE_BYTES),
        )

    def _sorted(self, arrays: Sequence[Any]) -> tuple[Sequence[Any], Any, Sequence[Any], Any, Any]:
        """Weights, bias, scales, x and y out of the parameters in order."""
        weights = 2 if self.bits else 1
        *scales, x, y = arrays[weights + 1 :]
        return arrays[:weights], arrays[weights], scales, x, y

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """A warp a tile; all its lanes meet at every mma."""
        weights, bias, scales, x, y = self._sorted(buffers)
        work = PIXELS * self.tile.pixels * CHANNELS * self.tile.channels
        with on.nest([*self.tiles, LANES], work) as (down, across, lane):
            group, thread = tirx.floordiv(lane, 4), tirx.floormod(lane, 4)
            first = across * (self.tile.channels * CHANNELS) + thread * 2
            rows = [
                down * (PIXELS * self.tile.pixels) + number * (PIXELS // 2) + group
                for number in range(2 * self.tile.pixels)
            ]
            corners = [T.Bind(self._corner(row) + thread * 4) for row in rows]
            sums = on.local("int32", 4 * self.tile.pixels * self.tile.channels)
            for i, j, e in self._results():
                start = bias[first + j * CHANNELS + e % 2]
                T.buffer_store(sums, start, [self._sum(i, j) + e])
            block = across * self.tile.channels
            tables = self._tables(weights, block * CHANNELS + group)
            for number, offset in enumerate(self.runs):
                with T.serial(0, self.steps) as step:
                    starts = [corner + offset + step * STEP for corner in corners]
                    place = ((number * self.steps + step) * self.blocks + block) * LANES + lane
                    codes = self._codes(x, starts)
                    for j in range(self.tile.channels):
                        factors = self._factors(weights, place + j * LANES, tables[j])
                        for i in range(self.tile.pixels):
                            result = T.address_of(sums[self._sum(i, j)])
                            call = T.call_extern("int32", "ptq_mma", result, *codes[i], *factors)
                            T.evaluate(call)
            self._finish(sums, scales, y, rows, first)

    def _corner(self, pixel: Expr) -> Expr:
        """Where the window of an output begins; those beyond the last repeat it."""
        inside = T.min(pixel, T.int32(self.pixels - 1))
        sample, row, column = unravel(inside, [self.samples, self.out_rows, self.out_width])
        return sample * self.sample_bytes + row * self.row_bytes + column * self.pixel_bytes

    def _results(self) -> list[tuple[int, int, int]]:
        """Pixel block, channel block and element of every sum of a lane."""
        return list(itertools.product(range(self.tile.pixels), range(self.tile.channels), range(4)))

    def _sum(self, pixels: int, channels: int) -> int:
        return 4 * (pixels * self.tile.channels + channels)

    def _tables(self, weights: Sequence[Buffer], channel: Expr) -> list[list[Expr]]:
        """The words of the lane's table for every block of channels; none if weights are int8."""
        words = {0: 0, 2: 1, 4: 4}[self.bits]
        starts = [
            (channel + j * CHANNELS) * TABLE_BYTES for j in range(self.tile.channels)
        ]  # fmt: skip
        return [
            [T.Bind(_word("uint32", weights[1], start + 4 * n)) for n in range(words)]
            for start in starts
        ]

    def _codes(self, x: Buffer, starts: list[Expr]) -> list[list[Expr]]:
        """32 codes of every pixel: a0 to a3 for each block of 16; starts: of their rows."""
        return [
            [T.Bind(_word("uint32", x, start + half)) for half in (0, STEP // 2) for start in pair]
            for pair in zip(starts[::2], starts[1::2], strict=True)
        ]

    def _factors(self, weights: Sequence[Buffer], place: Expr, table: list[Expr]) -> list[Expr]:
        """b0 and b1; place: of the weights, in lanes."""
        if not self.bits:
            at = place * FRAGMENT_BYTES
            return [T.Bind(_word("int32", weights[0], at + half)) for half in (0, 4)]
        selectors = pair_selectors(self.bits, weights[0], place * pair_bytes(self.bits))
        return [T.Bind(T.Cast("int32", look_up(self.bits, table, s))) for s in selectors]

    def _finish(
        self, sums: Buffer, scales: Sequence[Buffer], y: Buffer, rows: list[Expr], first: Expr
    ) -> None:
        """Requantise and store what is inside."""
        for i, j, e in self._results():
            row, channel = rows[2 * i + e // 2], first + j * CHANNELS + e % 2
            with T.If(tirx.all(row < self.pixels, channel < self.out)), T.Then():
                code = self.rounding.vector(sums[self._sum(i, j) + e], scales, channel, 1)
                T.buffer_store(y, code, [row * self.out + channel])

    def oracle(self, *arrays: Array) -> Array:
        """By PackedConvolution's, of the same weights."""
        weights, bias, scales, x, _ = self._sorted([*arrays, None])
        weight = self._decoded(*weights) if self.bits else weights[0]
        split = weight.reshape(len(self.runs), self.steps, self.blocks, CHANNELS, 4, 2, 4)
        rows = split.transpose(2, 3, 0, 1, 5, 4, 6)
        same = PackedConvolution(
            "dp4a", Tile(1, 1, 1), self.runs, self.steps * STEP, self.row_bytes, self.pixel_bytes,
            self.out_rows, self.out_width, self.out, self.rounding,
            samples=self.samples, sample_bytes=self.sample_bytes,
        )  # fmt: skip
        kept = rows.reshape(-1, len(self.runs), self.steps * STEP)[: self.out]
        constants = [part[: self.out] for part in (bias, *scales)]
        return same.oracle(in_order(pack(kept, same), same.how), *constants, x)

    def _decoded(self, codes: Array, tables: Array) -> Array:
        by_lane = codes.reshape(-1, pair_bytes(self.bits))
        indices = unpaired(by_lane, self.bits).reshape(-1, self.blocks, CHANNELS, 4 * 2 * 4)
        lookup = tables.reshape(1, self.blocks, CHANNELS, TABLE_BYTES)
        return np.take_along_axis(lookup, indices.astype(np.int64), -1)


def _word(kind: str, buffer: Buffer, at: Expr) -> Expr:
    """Four neighbouring bytes as one number."""
    return T.reinterpret(kind, buffer[tirx.Ramp(at, 1, 4)])


def pack_fragments(rows: Array, kernel: TensorConvolution) -> Array:
    """[out, runs, run bytes] -> [runs, steps, blocks, 8 channels, 4, 2, 4], filled with zeros."""
    out, runs, size = rows.shape
    full = np.zeros((kernel.blocks * CHANNELS, runs, kernel.steps * STEP), rows.dtype)
    full[:out, :, :size] = rows
    split = full.reshape(kernel.blocks, CHANNELS, runs, kernel.steps, 2, 4, 4)
    return np.ascontiguousarray(split.transpose(2, 3, 0, 1, 5, 4, 6))


def pack_palette(fragments: Array) -> Palette | None:
    """Fragments as codes and tables, or None if a channel has more than 16 values.

    Codes of 3 bits take 4, so that a lane's are whole bytes.
    """
    blocks = fragments.shape[2]
    by_channel = fragments.transpose(2, 3, 0, 1, 4, 5, 6)
    found = index_rows(by_channel.reshape(blocks * CHANNELS, -1))
    if found is None:
        return None
    codes, tables = found
    bits = 2 if bits_of(codes) == 2 else 4
    in_order = codes.reshape(by_channel.shape).transpose(2, 3, 0, 1, 4, 5, 6)
    return Palette(bits, pairs(in_order, bits), tables)
