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

from ptq.kernels.binding import Binding, cache_lines, fetch, unravel
from ptq.kernels.dot import QUAD
from ptq.kernels.kernel import Buffer, Expr
from ptq.kernels.packed_convolution import PackedConvolution, Tile, Weights
from ptq.kernels.palette import UNIT
from ptq.kernels.saturation import vectors_of_codes
from ptq.kernels.vectors import span, store_first

ROWS, ROW_BYTES = 16, 64
LANES = 16
SUMS = 4
"""Registers of sums: what one requantisation packs. Four are left for codes and weights."""
CODES = {1: 3, 2: 2, 4: 1}
"""How many of these hold codes, by tiles of weights that the same codes are multiplied with."""
COSTS = {2: 1.0, 4: 1.03, 1: 1.45}
"""What a product takes then, relative: of loads, which are fewest with two of each."""
STRETCH_BYTES = 1 << 15
"""What all blocks are multiplied with, and make: a first-level cache holds both."""
MOST_JOBS, LEAST_STEPS = 64, 16
"""Parts for threads, and what each has at least: configuring registers takes as long as a step."""
MACS_OF_WORK = 8
"""Products in the time of one by other kernels."""


@dataclass(frozen=True)
class Job:
    """So many steps from one on, of a walk over stretches, blocks and batches.

    block: what the walk's blocks are counted from, if not from 0.
    """

    first: Expr
    steps: int
    walk: tuple[int, int, int]
    block: Expr = None


@dataclass(frozen=True)
class TileConvolution(PackedConvolution):
    """As PackedConvolution, by tiles of `tile.pixels` rows and `tile.group` quads.

    tile.vectors: 1, 2 or 4; `images` tiles of pixels are multiplied with each.
    """

    @property
    def reads_once(self) -> bool:
        """Never: tiles are loaded from memory, so that is where decoded weights go first."""
        return False

    @property
    def count(self) -> int:
        """Tiles of pixels in all rows."""
        return self.samples * self.out_rows * self.tiles

    @property
    def images(self) -> int:
        """Tiles of pixels at a time."""
        return min(SUMS // self.tile.vectors, self.count)

    @property
    def batches(self) -> int:
        """Of `images` tiles of pixels; the last one begins earlier."""
        return -(-self.count // self.images)

    @property
    def walk(self) -> tuple[int, int, int]:
        """Stretches of the image, blocks of channels, batches of a stretch: loops, outermost first.

        What is larger, weights or codes, is walked over once.
        """
        window = len(self.runs) * self.quads * QUAD
        pixels = self.samples * self.out_rows * self.out_width
        if self.blocks * self.block * window >= pixels * self.pixel_bytes:
            return 1, self.blocks, self.batches
        batch_bytes = self.images * self.tile.pixels * (window + self.groups * self.out)
        stretches = -(-self.batches // max(STRETCH_BYTES // batch_bytes, 1))
        return stretches, self.blocks, -(-self.batches // stretches)

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """A job is some batches of some blocks, or a block if its weights have to be decoded."""
        count = len(self._weights())
        weights, others = buffers[:count], buffers[count:]
        macs = self.images * self.tile.pixels * self.block * len(self.runs) * self.quads
        if self.in_panels:
            with on.nest([self.blocks], self.batches * macs // MACS_OF_WORK) as (block,):
                panel = cache_lines(on, "int8", self.decode.panel_bytes)
                codes, tables = weights
                self.decode.panel(codes, tables, block, panel)
                job = Job(T.int32(0), self.batches, (1, 1, self.batches), block)
                self._job(on, Weights([panel], 0), others, job)
            return
        steps = int(np.prod(self.walk))
        each = max(-(-steps // MOST_JOBS), min(steps, LEAST_STEPS))
        with on.nest([-(-steps // each)], each * macs // MACS_OF_WORK) as (number,):
            job = Job(T.Bind(number * each), each, self.walk)
            self._job(on, Weights(weights, None), others, job)

    def _job(self, on: Binding, weights: Weights, others: Sequence[Buffer], job: Job) -> None:
        """While tiles of one batch are multiplied, the sums of the batch before are requantised.

        They take a way through memory, which is written after it was read: loads wait for stores
        before them that may be of the same line of a page.
        """
        sums = cache_lines(on, "int32", self.images * self.tile.pixels * self.block)
        with self._configured(on), T.serial(0, job.steps + 1) as step:
            with self._step(job, step, step < job.steps) as (block, batch):
                self._multiply(weights, others, block, batch)
            with self._step(job, step - 1, step > 0) as (block, batch):
                self._requantize(others, sums, block, batch)
            with self._step(job, step, step < job.steps):
                self._store(sums)

    @contextmanager
    def _step(self, job: Job, step: Expr, exists: Expr) -> Iterator[tuple[Expr, Expr]]:
        """A step's block and batch, if there is one."""
        stretches, _, each = job.walk
        stretch, block, number = unravel(job.first + step, job.walk)
        with T.If(exists), T.Then():
            batch = T.Bind(stretch * each + number)
            with T.If(tirx.all(stretch < stretches, batch < self.batches)), T.Then():
                yield T.Bind(block if job.block is None else job.block + block), batch

    @contextmanager
    def _configured(self, on: Binding) -> Iterator[None]:
        """Give every register its rows and bytes of a row (palette 1)."""
        codes = CODES[self.tile.vectors]
        weights = 8 - SUMS - codes
        rows = [self.tile.pixels] * (SUMS + codes) + [self.tile.group] * weights
        row_bytes = [ROW_BYTES] * SUMS + [QUAD * self.tile.group] * codes + [ROW_BYTES] * weights
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

    def _both(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(self.images), range(self.tile.vectors))

    def _places(self, batch: Expr) -> list[list[Expr]]:
        """Sample, row and first pixel of each tile of a batch; the last of a row begins earlier."""
        first = T.Bind(T.min(batch * self.images, T.int32(self.count - self.images)))
        places = []
        for image in range(self.images):
            extents = [self.samples, self.out_rows, self.tiles]
            sample, row, number = unravel(first + image, extents)
            pixels = self.tile.pixels
            start = T.min(number * pixels, T.int32(self.out_width - pixels))
            places.append([T.Bind(part) for part in (sample, row, start)])
        return places

    def _multiply(
        self, weights: Weights, others: Sequence[Buffer], block: Expr, batch: Expr
    ) -> None:
        """Sums of a batch and a block, in registers."""
        bias, *_, x, _ = others
        for image, vector in self._both():
            start = tirx.address_of(bias[block * self.block + vector * LANES])
            _do("tileloadd64", self._register(image, vector), start, T.int64(0))
        shift = tirx.floordiv(block, self.group_blocks) * self.group_bytes
        corners = [
            T.Bind(n * self.sample_bytes + row * self.row_bytes + first * self.pixel_bytes + shift)
            for n, row, first in self._places(batch)
        ]
        mine = block if weights.block is None else weights.block
        for number in range(len(self.runs)):
            with T.serial(0, self.quads // self.tile.group) as step:
                if weights.block is None:  # they are not in a panel on the stack
                    with T.If(batch == 0), T.Then():
                        self._fetch_next(weights.buffers[0], block, number, step)
                self._products(weights.buffers[0], x, mine, corners, number, step)

    def _store(self, sums: Buffer) -> None:
        """Sums of all registers, [image, pixel, vector, lane]."""
        for image, vector in self._both():
            start = image * self.tile.pixels * self.block + vector * LANES
            stride = T.int64(4 * self.block)
            register = self._register(image, vector)
            _do("tilestored64", register, tirx.address_of(sums[start]), stride)

    def _fetch_next(self, weight: Buffer, block: Expr, run: int, step: Expr) -> None:
        """Ask for what the next block will be multiplied with in this step."""
        first = self._first(block + 1, run, step * self.tile.group, self.quads)
        for line in range(self.tile.group * self.tile.vectors):
            fetch(weight, (first + line) * ROW_BYTES)

    def _products(
        self, weight: Buffer, x: Buffer, block: Expr, corners: Sequence[Expr], run: int, step: Expr
    ) -> None:
        """Every tile of codes times every one of weights, of a step of a run."""
        quads, vectors, held = self.tile.group, self.tile.vectors, CODES[self.tile.vectors]
        first = self._first(block, run, step * quads, self.quads)
        for image, vector in self._both():
            codes = T.int8(SUMS + image % held)
            factors = T.int8(SUMS + held + vector % (SUMS - held))
            if vector == 0:
                start = x[corners[image] + self.runs[run] + step * quads * QUAD]
                _do("tileloadd64", codes, tirx.address_of(start), T.int64(self.pixel_bytes))
            if image == 0:
                start = weight[(first + vector) * ROW_BYTES]
                _do("tileloadd64", factors, tirx.address_of(start), T.int64(ROW_BYTES * vectors))
            _do("tdpbusd", self._register(image, vector), codes, factors)

    def _register(self, image: int, vector: int) -> Expr:
        """That of the sums of a tile of pixels and one of channels."""
        return T.int8(image * self.tile.vectors + vector)

    def _requantize(self, others: Sequence[Buffer], sums: Buffer, block: Expr, batch: Expr) -> None:
        """Pixel by pixel of every tile, in vectors of channels."""
        _, *scales, _, y = others
        places = self._places(batch)
        group = tirx.floordiv(block, self.group_blocks)
        within = tirx.floormod(block, self.group_blocks) * self.block
        lanes = [span(block * self.block + vector * LANES, LANES) for _, vector in self._both()]
        with T.serial(0, self.tile.pixels) as pixel:
            accs = []
            for image, vector in self._both():
                row = image * self.tile.pixels + pixel
                accs.append(sums[span(row * self.block + vector * LANES, LANES)])
            codes = vectors_of_codes(self.how, self.rounding, accs, scales, lanes)
            for (image, vector), code in zip(self._both(), codes, strict=True):
                sample, row, first = places[image]
                channel = within + vector * LANES
                start = self.pixel_at(sample, row, first + pixel) + group * self.out + channel
                store_first(y, code, start, LANES, self.out - channel, self.out % LANES)


def in_tiles(kernel: PackedConvolution) -> TileConvolution:
    """The same convolution by AMX; weights are to be packed for it."""
    steps = -(-kernel.run // ROW_BYTES)
    quads = -(-kernel.run // (steps * QUAD * UNIT)) * UNIT
    pixels = -(-kernel.out_width // -(-kernel.out_width // ROWS))
    full = -(-kernel.out // LANES)
    vectors = min(COSTS, key=lambda some: -(-full // some) * some * COSTS[some])
    fields = {name: getattr(kernel, name) for name in kernel.__dataclass_fields__}
    return replace(TileConvolution(**fields), tile=Tile(pixels, vectors, quads))


def _do(name: str, *arguments: Expr) -> None:
    """An instruction of AMX, which gives nothing back."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
