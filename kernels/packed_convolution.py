"""Convolution by vectors of out channels over channels-last images that are padded already.

For every part of the window that is contiguous in memory (a *run*: a row of the window, or one
pixel), four bytes of the image are broadcast and multiplied with packed weights. A tile of `pixels`
outputs by `vectors` of out channels stays in registers until its sums are complete;
requantisation follows at once. A matrix product is the case of a window of one pixel.

Weights that are codes of a palette are decoded in the loop where each is read once, and by threads
of a GPU; for several tiles of pixels a block's weights are decoded into a panel, which all tiles
then read from the cache.
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

from ptq.kernels.binding import LINE_BYTES, Binding, fetch, serial, unravel
from ptq.kernels.dot import ISAS, QUAD, Isa
from ptq.kernels.kernel import Buffer, Expr, Parameter
from ptq.kernels.packing import unpack
from ptq.kernels.palette import UNIT, Decode, arrangement, unit_bytes
from ptq.kernels.requantize import Rounding
from ptq.kernels.saturation import vectors_of_codes
from ptq.kernels.vectors import span, store_first
from ptq.kernels.view import View

Array = npt.NDArray[Any]
AHEAD_BYTES = 1 << 14
"""How far weights that are read once are fetched ahead: processors do so within a page only."""
SLACK = 64  # bytes behind the image that may be read; they meet weights of zero


@dataclass(frozen=True)
class Tile:
    """What stays in registers: pixels x vectors accumulators; group: quads added at a time."""

    pixels: int
    vectors: int
    group: int


@dataclass(frozen=True)
class Weights:
    """Where a tile reads them: a buffer of int8, or one of codes and one of tables.

    block: which of the blocks there is its own.
    """

    buffers: Sequence[Buffer]
    block: Expr

    @property
    def coded(self) -> bool:
        """True if they are decoded in the loop."""
        return len(self.buffers) > 1


@dataclass(frozen=True)
class PackedConvolution:
    """y = requantize(bias + sum x * weight), the zero point's share being in the bias.

    x: [samples, rows, width, groups, channels] bytes, padded; `sample_bytes`, `row_bytes`,
    `pixel_bytes` and `group_bytes` between neighbours.
    y: where pixels [samples, rows, width] of groups * out codes begin, or None: one after another.
    Its rows need not be those of the loops, which may walk pixels of a whole batch as one row.
    runs: where the window's runs begin, bytes from its corner. run: bytes of a run.
    packed weights: [groups and blocks of out, runs, quads, vectors, lanes, 4], where lanes are
    threads [runs, quads, groups and blocks of out, vectors, lanes, 4].
    bits: of the weights' codes into a palette; 0 if weights are int8.
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
    samples: int = 1
    sample_bytes: int = 0
    groups: int = 1
    group_bytes: int = 0
    y: View | None = None

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
        """Blocks of out channels of all groups; the last of each may be cut."""
        return self.groups * self.group_blocks

    @property
    def group_blocks(self) -> int:
        """Blocks of a group."""
        return -(-self.out // self.block)

    @property
    def block(self) -> int:
        """Out channels of a tile."""
        return self.tile.vectors * self.how.lanes

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int8 or Decode's first two; bias int32 [channels], scales; x uint8, y codes."""
        channels = self.blocks * self.block
        last = (self.samples - 1) * self.sample_bytes + (self.groups - 1) * self.group_bytes
        last += (self.out_rows - 1) * self.row_bytes + (self.out_width - 1) * self.pixel_bytes
        reach = last + self.runs[-1] + self.quads * QUAD
        size = self.pixels.size - 1 + self.groups * self.out
        return (
            *self._weights(),
            Parameter("bias", "int32", channels),
            *self.rounding.scales(channels),
            Parameter("x", "uint8", reach),
            Parameter("y", self.rounding.dtype, size),
        )

    @property
    def pixels(self) -> View:
        """Where each pixel of y begins."""
        count = self.samples * self.out_rows * self.out_width
        return self.y or View((count,), (self.groups * self.out,))

    def pixel_at(self, sample: Expr, row: Expr, column: Expr) -> Expr:
        """Where a pixel of y begins, of the loops' sample, row and column."""
        if self.pixels.shape == (self.samples, self.out_rows, self.out_width):
            return self.pixels.at([sample, row, column])
        number = (sample * self.out_rows + row) * self.out_width + column
        return self.pixels.at(unravel(number, self.pixels.shape))

    def _sorted(self, arrays: Sequence[Any]) -> tuple[Sequence[Any], Any, Sequence[Any], Any, Any]:
        """Weights, bias, scales, x and y out of the parameters in order."""
        weights = 2 if self.bits else 1
        *scales, x, y = arrays[weights + 1 :]
        return arrays[:weights], arrays[weights], scales, x, y

    def _weights(self) -> tuple[Parameter, ...]:
        if self.bits:
            return self.decode.parameters()
        size = self.blocks * self.block * len(self.runs) * self.quads * QUAD
        return (Parameter("weight", "int8", size),)

    @property
    def in_panels(self) -> bool:
        """True if weights are decoded for all tiles of a block at once."""
        return self.bits > 0 and not self.reads_once and not self.how.by_thread

    @property
    def reads_once(self) -> bool:
        """True if there is one tile of pixels, which weights only pass."""
        return self.samples * self.out_rows * self.tiles == 1

    @property
    def tiles(self) -> int:
        """Of a row."""
        return -(-self.out_width // self.tile.pixels)

    @property
    def decode(self) -> Decode:
        """What makes this kernel's int8 weights from codes of a palette."""
        units = len(self.runs) * self.quads // UNIT
        return Decode(self.isa, self.bits, self.blocks, units, self.tile.vectors)

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """Tile by tile of rows of images, for every block of channels."""
        count = len(self._weights())
        weights, others = buffers[:count], buffers[count:]
        extents = [self.samples, self.out_rows, self.tiles]
        work = self.tile.pixels * self.block * len(self.runs) * self.quads
        if self.in_panels:
            with on.nest([self.blocks], work * int(np.prod(extents))) as (block,):
                panel = Weights([on.local("int8", self.decode.panel_bytes)], 0)
                codes, tables = weights
                self.decode.panel(codes, tables, block, panel.buffers[0])
                with serial(extents) as place:
                    self._in_row(on, panel, others, block, place)
            return
        with on.nest([self.blocks, *extents], work, fused=3, neighbours=0) as (block, *place):
            self._in_row(on, Weights(weights, block), others, block, place)

    def _in_row(
        self, on: Binding, weights: Weights, others: Sequence[Buffer], block: Expr,
        place: Sequence[Expr],
    ) -> None:  # fmt: skip
        """A tile of a row: the first ones have a pixel more than the others, if those differ.

        Neighbouring threads of a GPU should do the same, so there the last tile begins earlier.
        """
        sample, row, tile = place
        pixels = -(-self.out_width // self.tiles)
        larger = self.out_width - self.tiles * (pixels - 1)

        def emit(size: int, first: Expr) -> None:
            self._tile(on, weights, others, size, block, (sample, row, first))

        if larger == self.tiles:
            emit(pixels, tile * pixels)
        elif self.how.by_thread:
            emit(pixels, T.min(tile * pixels, T.int32(self.out_width - pixels)))
        else:
            with T.If(tile < larger):
                with T.Then():
                    emit(pixels, tile * pixels)
                with T.Else():
                    emit(pixels - 1, tile * (pixels - 1) + larger)

    def _tile(
        self, on: Binding, weights: Weights, others: Sequence[Buffer], pixels: int, block: Expr,
        place: tuple[Expr, Expr, Expr],
    ) -> None:  # fmt: skip
        bias, *scales, x, y = others
        lanes, vectors, group = self.how.lanes, self.tile.vectors, self.tile.group
        acc = on.local("int32", pixels * vectors * lanes)
        for p in range(pixels):
            for v in range(vectors):
                start = bias[span(block * self.block + v * lanes, lanes)]
                T.buffer_store(acc, start, [self._lane(p, v)])
        sample, row, first = place
        corner = sample * self.sample_bytes + row * self.row_bytes + first * self.pixel_bytes
        corner += tirx.floordiv(block, self.group_blocks) * self.group_bytes
        for number, offset in enumerate(self.runs):
            step_quads = UNIT if weights.coded else group
            with T.serial(0, self.quads // step_quads) as step:
                quads = [step * step_quads + q for q in range(step_quads)]
                if self.reads_once and not self.how.by_thread:
                    self._fetch(weights, number, step, self.quads // step_quads)
                factors = [self._factors(weights, number, quads, v) for v in range(vectors)]
                for p in range(pixels):
                    codes = [
                        T.Bind(self._quad(x, corner + p * self.pixel_bytes + offset + q * QUAD))
                        for q in quads
                    ]
                    for v, start in itertools.product(range(vectors), range(0, step_quads, group)):
                        at, some = self._lane(p, v), slice(start, start + group)
                        total = self.how.dots(acc[at], codes[some], factors[v][some])
                        T.buffer_store(acc, total, [at])
        self._finish(on, acc, scales, y, pixels, block, place)

    def _fetch(self, weights: Weights, run: int, step: Expr, steps: int) -> None:
        """Ask for the weights that will be read AHEAD_BYTES behind those of this step."""
        panel = len(self.runs) * self.quads * self.tile.vectors * QUAD * self.how.lanes
        if weights.coded:
            panel = self.decode.units * self.tile.vectors * unit_bytes(self.how, self.bits)
        size = panel // (len(self.runs) * steps)
        at = weights.block * panel + (run * steps + step) * size + AHEAD_BYTES
        for line in range(0, size, LINE_BYTES):
            fetch(weights.buffers[0], at + line)

    def _factors(self, weights: Weights, run: int, quads: list[Expr], vector: int) -> list[Expr]:
        """The weights of one vector of channels for a group of quads; a unit if they are codes."""
        vectors, width, block = self.tile.vectors, QUAD * self.how.lanes, weights.block
        if not weights.coded:
            starts = [(self._first(block, run, q, self.quads) + vector) * width for q in quads]
            return [T.Bind(weights.buffers[0][span(start, width)]) for start in starts]
        codes, tables = weights.buffers
        rows = [((block * vectors + vector) * 4 + row) * width for row in range(4)]
        looked_up = [tables[tirx.Ramp(start, 1, width)] for start in rows]
        place = self._first(block, run, tirx.floordiv(quads[0], UNIT), self.quads // UNIT) + vector
        at = place * unit_bytes(self.how, self.bits)
        return arrangement(self.how).decode_unit(self.how, self.bits, codes, at, looked_up)

    def _first(self, block: Expr, run: int, step: Expr, steps: int) -> Expr:
        """Which vector is the first one of a block at a step of a run."""
        if self.how.by_thread:
            return ((run * steps + step) * self.blocks + block) * self.tile.vectors
        return ((block * len(self.runs) + run) * steps + step) * self.tile.vectors

    def _lane(self, pixel: int, vector: int) -> Expr:
        lanes = self.how.lanes
        return span((pixel * self.tile.vectors + vector) * lanes, lanes)

    @staticmethod
    def _quad(x: Buffer, at: Expr) -> Expr:
        """Four codes as one int32."""
        return T.reinterpret("int32", x[tirx.Ramp(at, 1, QUAD)])

    def _finish(
        self,
        on: Binding,
        acc: Buffer,
        scales: Sequence[Buffer],
        y: Buffer,
        pixels: int,
        block: Expr,
        place: tuple[Expr, Expr, Expr],
    ) -> None:
        """Requantise and store; the last block's surplus channels are not stored.

        place: sample, row and column of the first pixel.
        """
        lanes = self.how.lanes
        group = tirx.floordiv(block, self.group_blocks)
        within = tirx.floormod(block, self.group_blocks) * self.block
        sample, row, first = place
        every = list(itertools.product(range(pixels), range(self.tile.vectors)))
        sums = [acc[self._lane(p, v)] for p, v in every]
        channels = [span(block * self.block + v * lanes, lanes) for _, v in every]
        found = vectors_of_codes(self.how, self.rounding, sums, scales, channels)
        for (p, v), codes in zip(every, found, strict=True):
            channel = within + v * lanes
            start = self.pixel_at(sample, row, first + p) + group * self.out + channel
            if self.out % self.block == 0:
                T.buffer_store(y, codes, [span(start, lanes)])
            else:
                store_first(y, codes, start, lanes, self.out - channel, self.out % lanes)

    def oracle(self, *arrays: Array) -> Array:
        """Unpacks the weights and multiplies in int64."""
        weights, bias, scales, x, _ = self._sorted([*arrays, None])
        weight = self.decode.oracle(*weights) if self.bits else weights[0]
        codes_type, weight_type = self.how.operands
        unpacked = unpack(weight, self).view(weight_type).astype(np.int64)
        rows = unpacked.reshape(self.groups, -1, len(self.runs), unpacked.shape[-1])
        biases, *factors = (part.reshape(self.groups, -1) for part in (bias, *scales))
        shape = (self.samples, self.out_rows, self.out_width, self.groups, self.out)
        out = np.zeros(shape, self.rounding.dtype)
        for sample, row, column, group in np.ndindex(shape[:4]):
            corner = sample * self.sample_bytes + row * self.row_bytes
            corner += column * self.pixel_bytes + group * self.group_bytes
            acc = biases[group].astype(np.int64)
            for number, offset in enumerate(self.runs):
                window = x[corner + offset :][: self.quads * QUAD].view(codes_type).astype(np.int64)
                acc = acc + rows[group, :, number, :] @ (window - self.how.offset)
            codes = self.rounding.vector_oracle(acc, *(part[group] for part in factors))
            out[sample, row, column, group] = codes[: self.out]
        return out
