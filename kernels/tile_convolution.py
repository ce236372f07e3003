"""Convolution by AMX: products of tiles, sixteen pixels by sixteen out channels by 64 codes.

A processor with AMX has eight tile registers of 16 rows of 64 bytes. A tile of codes is loaded as
it lies in a channels-last image, a row a pixel; a tile of weights is a *step* of them as
PackedConvolution packs them, a row a quad; tdpbusd adds their product to a tile of int32 sums. As
many sums as fit beside what they are made of are kept, then stored on the stack and requantised.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, unravel
from ptq.kernels.dot import QUAD
from ptq.kernels.kernel import Buffer, Expr
from ptq.kernels.packed_convolution import PackedConvolution, Tile, Weights
from ptq.kernels.palette import UNIT
from ptq.kernels.saturation import can_saturate, saturated
from ptq.kernels.vectors import span, store_first

REGISTERS, ROWS, ROW_BYTES = 8, 16, 64
LANES = 16
VECTORS = {2: 1.0, 3: 1.08, 1: 1.15}
"""How many tiles of weights there may be at a time, and what a product takes then, relative."""
STRETCH_BYTES = 1 << 15
"""Codes that a job walks over: what a first-level cache holds."""
MACS_OF_WORK = 8
"""Products in the time of one by other kernels."""


@dataclass(frozen=True)
class TileConvolution(PackedConvolution):
    """As PackedConvolution, by tiles of `tile.pixels` rows and `tile.group` quads.

    tile.vectors: of VECTORS; `images` tiles of pixels are multiplied with each.
    """

    @property
    def count(self) -> int:
        """Tiles of pixels in all rows."""
        return self.samples * self.out_rows * self.tiles

    @property
    def images(self) -> int:
        """Tiles of pixels at a time: with their sums and the weights they fill the registers."""
        vectors = self.tile.vectors
        return min((REGISTERS - vectors) // (vectors + 1), self.count)

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """A job is a block of channels and a stretch of tiles, and configures its registers.

        What is larger, weights or codes, is walked over once.
        """
        count = len(self._weights())
        weights, others = buffers[:count], buffers[count:]
        groups = -(-self.count // self.images)
        stretches = 1 if self.in_panels else self._stretches(groups)
        each = -(-groups // stretches)
        extents, order = [self.blocks, stretches], slice(None, None, 1)
        codes_bytes = self.samples * self.sample_bytes + self.out_rows * self.row_bytes
        if self.blocks * self.block * len(self.runs) * self.quads * QUAD < codes_bytes:
            order = slice(None, None, -1)
        macs = each * self.images * self.tile.pixels * self.block * len(self.runs) * self.quads
        with on.nest(extents[order], macs // MACS_OF_WORK, fused=2) as indices:
            block, stretch = indices[order]
            mine = Weights(weights, block)
            if self.in_panels:
                mine = Weights([on.local("int8", self.decode.panel_bytes)], 0)
                codes, tables = weights
                self.decode.panel(codes, tables, block, mine.buffers[0])
            with self._configured(on), T.serial(0, each) as number:
                group = stretch * each + number
                with T.If(group < groups), T.Then():
                    self._group(on, mine, others, block, group)

    def _stretches(self, groups: int) -> int:
        """How many parts the tiles of pixels are walked over in."""
        step_bytes = self.images * self.tile.pixels * len(self.runs) * self.quads * QUAD
        each = max(STRETCH_BYTES // step_bytes, 1)
        return -(-groups // each)

    @contextmanager
    def _configured(self, on: Binding) -> Iterator[None]:
        """Give every register its rows and bytes of a row (palette 1)."""
        images, vectors = self.images, self.tile.vectors
        sums, codes = images * vectors, images
        rows = [self.tile.pixels] * (sums + codes) + [self.tile.group] * vectors
        row_bytes = [ROW_BYTES] * sums + [QUAD * self.tile.group] * codes + [ROW_BYTES] * vectors
        palette = np.zeros(ROW_BYTES, np.uint8)
        palette[0] = 1
        palette[16 : 16 + 2 * len(row_bytes)] = np.array(row_bytes, np.uint16).view(np.uint8)
        palette[48 : 48 + len(rows)] = rows
        words = on.local("int32", LANES)
        for at, word in enumerate(palette.view(np.int32)):
            T.buffer_store(words, T.int32(int(word)), [at])
        _do("ldtilecfg", tirx.address_of(words[0]))
        yield
        _do("tilerelease")

    def _group(
        self, on: Binding, weights: Weights, others: Sequence[Buffer], block: Expr, group: Expr
    ) -> None:
        """Sums of `images` tiles of pixels; the last group begins earlier."""
        bias, *scales, x, y = others
        first = T.Bind(T.min(group * self.images, T.int32(self.count - self.images)))
        places = [self._place(first + image) for image in range(self.images)]
        sums = on.local("int32", self.images * self.tile.pixels * self.block)
        for image, vector in self._both():
            at = tirx.address_of(bias[block * self.block + vector * LANES])
            _do("tileloadd64", _sums(self, image, vector), at, T.int64(0))
        self._multiply(weights, x, block, places)
        for image, vector in self._both():
            start = image * self.tile.pixels * self.block + vector * LANES
            at, stride = tirx.address_of(sums[start]), T.int64(4 * self.block)
            _do("tilestored64", _sums(self, image, vector), at, stride)
        with T.serial(0, self.tile.pixels) as pixel:
            self._requantize(sums, scales, y, block, places, pixel)

    def _both(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(self.images), range(self.tile.vectors))

    def _place(self, tile: Expr) -> list[Expr]:
        """Sample, row and first pixel of a tile of pixels; the last of a row begins earlier."""
        sample, row, number = unravel(tile, [self.samples, self.out_rows, self.tiles])
        pixels = self.tile.pixels
        first = T.min(number * pixels, T.int32(self.out_width - pixels))
        return [T.Bind(part) for part in (sample, row, first)]

    def _multiply(
        self, weights: Weights, x: Buffer, block: Expr, places: Sequence[Sequence[Expr]]
    ) -> None:
        """Step by step of every run."""
        images, vectors, quads = self.images, self.tile.vectors, self.tile.group
        codes = [T.int8(images * vectors + image) for image in range(images)]
        factors = [T.int8(images * vectors + images + vector) for vector in range(vectors)]
        shift = tirx.floordiv(block, self.group_blocks) * self.group_bytes
        corners = [
            T.Bind(
                sample * self.sample_bytes + row * self.row_bytes + first * self.pixel_bytes + shift
            )
            for sample, row, first in places
        ]
        for number, run in enumerate(self.runs):
            with T.serial(0, self.quads // quads) as step:
                for tile, corner in zip(codes, corners, strict=True):
                    at = tirx.address_of(x[corner + run + step * quads * QUAD])
                    _do("tileloadd64", tile, at, T.int64(self.pixel_bytes))
                start = self._first(weights.block, number, step * quads, self.quads)
                for vector, tile in enumerate(factors):
                    at = tirx.address_of(weights.buffers[0][(start + vector) * ROW_BYTES])
                    _do("tileloadd64", tile, at, T.int64(ROW_BYTES * vectors))
                for image, vector in self._both():
                    _do("tdpbusd", _sums(self, image, vector), codes[image], factors[vector])

    def _requantize(
        self, sums: Buffer, scales: Sequence[Buffer], y: Buffer, block: Expr,
        places: Sequence[Sequence[Expr]], pixel: Expr,
    ) -> None:  # fmt: skip
        """A pixel of every tile, in vectors of channels."""
        within = tirx.floormod(block, self.group_blocks) * self.block
        rows = [(image * self.tile.pixels + pixel) * self.block for image in range(self.images)]
        accs = [sums[span(rows[image] + vector * LANES, LANES)] for image, vector in self._both()]
        lanes = [span(block * self.block + vector * LANES, LANES) for _, vector in self._both()]
        codes = self._codes(accs, scales, lanes)
        for (image, vector), code in zip(self._both(), codes, strict=True):
            sample, row, first = places[image]
            group = tirx.floordiv(block, self.group_blocks)
            channel = within + vector * LANES
            start = self.pixel_at(sample, row, first + pixel) + group * self.out + channel
            store_first(y, code, start, T.int32(self.out) - channel, self.out % LANES)

    def _codes(
        self, accs: Sequence[Expr], scales: Sequence[Buffer], lanes: Sequence[Expr]
    ) -> list[Expr]:
        """uint8x16 each."""
        if not can_saturate(self.rounding):
            pairs = zip(accs, lanes, strict=True)
            return [self.rounding.vector(acc, scales, at, LANES) for acc, at in pairs]
        every = saturated(self.rounding, accs, scales[0], lanes)
        parts = [range(LANES * i, LANES * (i + 1)) for i in range(len(accs))]
        return [tirx.Shuffle([every], [tirx.const(i, "int32") for i in part]) for part in parts]


def in_tiles(kernel: PackedConvolution) -> TileConvolution:
    """The same convolution by AMX; weights are to be packed for it."""
    steps = -(-kernel.run // ROW_BYTES)
    quads = -(-kernel.run // (steps * QUAD * UNIT)) * UNIT
    pixels = -(-kernel.out_width // -(-kernel.out_width // ROWS))
    full = -(-kernel.out // LANES)
    vectors = min(VECTORS, key=lambda some: -(-full // some) * some * VECTORS[some])
    fields = {name: getattr(kernel, name) for name in kernel.__dataclass_fields__}
    return replace(TileConvolution(**fields), tile=Tile(pixels, vectors, quads))


def _sums(kernel: TileConvolution, image: int, vector: int) -> Expr:
    """The register of the sums of a tile of pixels and one of channels."""
    return T.int8(image * kernel.tile.vectors + vector)


def _do(name: str, *arguments: Expr) -> None:
    """An instruction of AMX, which gives nothing back."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
