"""Convolution on tensor cores: an implicit GEMM of warps, straight from channels-last images.

mma.m16n8k32 (PTX ISA, "Matrix Fragments for mma.m16n8k32") multiplies 16 pixels by 32 codes with 32
weights by 8 channels. Lane 4 g + t of a warp holds, as bytes that are neighbours in memory,

    codes      a0, a2: pixel g, bytes 4 t and 16 + 4 t;  a1, a3: pixel g + 8, the same
    weights    b0, b1: channel g, bytes 4 t and 16 + 4 t
    sums       0, 1: pixel g, channels 2 t and 2 t + 1;  2, 3: pixel g + 8, the same

so codes are loaded as they lie in the image, and weights as they were packed, 8 bytes a lane.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, unravel
from ptq.kernels.kernel import Buffer, Expr, Parameter
from ptq.kernels.packed_convolution import PackedConvolution, Tile, in_order, pack
from ptq.kernels.requantize import Rounding

Array = npt.NDArray[Any]
LANES = 32
PIXELS, CHANNELS, STEP = 16, 8, 32  # of one mma
FRAGMENT_BYTES = 8  # weights of a lane


@dataclass(frozen=True)
class WarpTile:
    """What stays in the registers of a warp: so many mma results, by pixels and by channels."""

    pixels: int
    channels: int


@dataclass(frozen=True)
class TensorConvolution:
    """y = requantize(bias + sum x * weight), as PackedConvolution; one group.

    packed weights: [runs, steps, blocks of 8 channels, 32 lanes, 2, 4].
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
        """weight int8; bias int32 [channels of all blocks], scales; x uint8, y codes."""
        channels = self.blocks * CHANNELS
        last = (self.samples - 1) * self.sample_bytes
        last += (self.out_rows - 1) * self.row_bytes + (self.out_width - 1) * self.pixel_bytes
        return (
            Parameter("weight", "int8", len(self.runs) * self.steps * STEP * channels),
            Parameter("bias", "int32", channels),
            *self.rounding.scales(channels),
            Parameter("x", "uint8", last + self.runs[-1] + self.steps * STEP),
            Parameter("y", self.rounding.dtype, self.pixels * self.out),
        )

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """A warp a tile; all its lanes meet at every mma."""
        weight, bias, *scales, x, y = buffers
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
            for number, offset in enumerate(self.runs):
                with T.serial(0, self.steps) as step:
                    starts = [corner + offset + step * STEP for corner in corners]
                    place = ((number * self.steps + step) * self.blocks + block) * LANES + lane
                    self._multiply(weight, x, sums, starts, place)
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

    def _multiply(
        self, weight: Buffer, x: Buffer, sums: Buffer, starts: list[Expr], place: Expr
    ) -> None:
        """32 codes of every pixel; starts: of their rows. place: of the weights, in lanes."""
        codes = [
            [T.Bind(_word("uint32", x, start + half)) for half in (0, STEP // 2) for start in pair]
            for pair in zip(starts[::2], starts[1::2], strict=True)
        ]
        for j in range(self.tile.channels):
            at = (place + j * LANES) * FRAGMENT_BYTES
            factors = [T.Bind(_word("int32", weight, at + half)) for half in (0, 4)]
            for i in range(self.tile.pixels):
                result = T.address_of(sums[self._sum(i, j)])
                T.evaluate(T.call_extern("int32", "ptq_mma", result, *codes[i], *factors))

    def _finish(
        self, sums: Buffer, scales: list[Buffer], y: Buffer, rows: list[Expr], first: Expr
    ) -> None:
        """Requantise and store what is inside."""
        for i, j, e in self._results():
            row, channel = rows[2 * i + e // 2], first + j * CHANNELS + e % 2
            with T.If(tirx.all(row < self.pixels, channel < self.out)), T.Then():
                code = self.rounding.vector(sums[self._sum(i, j) + e], scales, channel, 1)
                T.buffer_store(y, code, [row * self.out + channel])

    def oracle(self, weight: Array, bias: Array, *arrays: Array) -> Array:
        """By PackedConvolution's, of the same weights."""
        *scales, x = arrays
        shape = (len(self.runs), self.steps, self.blocks, CHANNELS, 4, 2, 4)
        rows = weight.reshape(shape).transpose(2, 3, 0, 1, 5, 4, 6)
        same = PackedConvolution(
            "dp4a", Tile(1, 1, 1), self.runs, self.steps * STEP, self.row_bytes, self.pixel_bytes,
            self.out_rows, self.out_width, self.out, self.rounding,
            samples=self.samples, sample_bytes=self.sample_bytes,
        )  # fmt: skip
        kept = rows.reshape(-1, len(self.runs), self.steps * STEP)[: self.out]
        constants = [part[: self.out] for part in (bias, *scales)]
        return same.oracle(in_order(pack(kept, same), same.how), *constants, x)


def _word(kind: str, buffer: Buffer, at: Expr) -> Expr:
    """Four neighbouring bytes as one number."""
    return T.reinterpret(kind, buffer[tirx.Ramp(at, 1, 4)])


def pack_fragments(rows: Array, kernel: TensorConvolution) -> Array:
    """int8 [out, runs, run bytes] -> the kernel's order, zeros where there is nothing."""
    out, runs, size = rows.shape
    full = np.zeros((kernel.blocks * CHANNELS, runs, kernel.steps * STEP), np.int8)
    full[:out, :, :size] = rows
    split = full.reshape(kernel.blocks, CHANNELS, runs, kernel.steps, 2, 4, 4)
    return np.ascontiguousarray(split.transpose(2, 3, 0, 1, 5, 4, 6)).reshape(-1)
