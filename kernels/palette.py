"""Weights as codes of 2, 3 or 4 bits into a table of their channel, decoded in registers.

What a channel's weights were rounded to does not matter: at most 2^bits values are a palette, so
uniform grids with zero points and power grids are one case.

A *unit* is 4 quads of one vector of channels: 16 codes a channel. How they lie depends on what
looks them up: shuffles of vectors (palette_shuffle.py), or a thread (palette_permute.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels import palette_permute, palette_shuffle
from ptq.kernels.dot import ISAS, QUAD, Isa
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter

UNIT = 4
BITS = (2, 3, 4)


@dataclass(frozen=True)
class Arrangement:
    """How the codes of a unit lie, and how they are looked up.

    planes: codes [..., rows, bytes of a row], bits -> [..., unit bytes]; unplaned: its inverse,
    with a vector's bytes as third argument.
    decode_unit: isa, bits, codes, where, tables -> 4 vectors.
    """

    planes: Callable[[Array, int], Array]
    unplaned: Callable[[Array, int, int], Array]
    decode_unit: Callable[[Isa, int, Buffer, Expr, Sequence[Expr]], list[Expr]]


SHUFFLES = Arrangement(
    palette_shuffle.planes, palette_shuffle.unplaned, palette_shuffle.decode_unit
)
PERMUTATIONS = Arrangement(
    palette_permute.planes, palette_permute.unplaned, palette_permute.decode_unit
)


def arrangement(isa: Isa) -> Arrangement:
    """What the instruction set wants."""
    return PERMUTATIONS if isa.by_thread else SHUFFLES


def rows_of(isa: Isa) -> int:
    """Channels whose quads share a row of lane blocks; a thread has one channel."""
    return min(4, isa.lanes)


@dataclass(frozen=True)
class Palette:
    """Packed weights of shape [blocks, units, vectors, 4 quads, lanes, 4] as codes and tables.

    codes: uint8 [blocks, units, vectors, unit bytes]; tables: int8 [blocks, vectors, 4, width].
    """

    bits: int
    codes: Array
    tables: Array


def unit_bytes(isa: Isa, bits: int) -> int:
    """Bytes that the codes of a unit take."""
    return QUAD * isa.lanes * bits // 2


def index_rows(rows: Array) -> tuple[Array, Array] | None:
    """int8 [rows, n] as codes uint8 [rows, n] into tables int8 [rows, 16], or None.

    There is none if a row has more than 16 values.
    """
    tables = np.zeros((len(rows), 16), np.int8)
    codes = np.empty(rows.shape, np.uint8)
    for number, row in enumerate(rows):
        values, codes[number] = np.unique(row, return_inverse=True)
        if len(values) > 16:
            return None
        tables[number, : len(values)] = values
    return codes, tables


def bits_of(codes: Array) -> int:
    """The fewest of BITS that hold the codes."""
    return next(bits for bits in BITS if codes.max(initial=0) < 1 << bits)


def find_palette(packed: Array, isa: Isa) -> Palette | None:
    """The narrowest palette of packed weights [blocks, runs, quads, vectors, lanes, 4], or None.

    There is none if a channel has more than 16 values (zeros of padding count), or if the runs are
    not of whole units.
    """
    blocks, runs, quads, vectors, lanes, _ = packed.shape
    if quads % UNIT:
        return None
    units, per_lane_block = runs * quads // UNIT, rows_of(isa)
    split = packed.reshape(
        blocks, units, UNIT, vectors, lanes // per_lane_block, per_lane_block, QUAD
    )
    rows = split.transpose(0, 3, 5, 4, 1, 2, 6)  # block, vector, row, lane block, unit, quad, byte
    found = index_rows(rows.reshape(-1, units * UNIT * QUAD))
    if found is None:
        return None
    codes, tables = found
    bits = bits_of(codes)
    # block, unit, vector, row, bytes of a row
    by_channel = codes.reshape(*rows.shape[:4], units, UNIT * QUAD)
    by_unit = by_channel.transpose(0, 4, 1, 2, 3, 5)
    return Palette(
        bits,
        arrangement(isa).planes(by_unit.reshape(*by_unit.shape[:4], -1), bits),
        tables.reshape(blocks, vectors, 4, QUAD * lanes),
    )


@dataclass(frozen=True)
class Decode:
    """Weights [blocks, units, 4 quads, vectors, lanes, 4] from codes, in the kernel's order."""

    isa: str
    bits: int
    blocks: int
    units: int
    vectors: int

    @property
    def how(self) -> Isa:
        """The instruction set."""
        return ISAS[self.isa]

    def parameters(self) -> tuple[Parameter, ...]:
        """codes uint8, tables int8."""
        width, count = QUAD * self.how.lanes, self.blocks * self.vectors
        return (
            Parameter("codes", "uint8", count * self.units * unit_bytes(self.how, self.bits)),
            Parameter("tables", "int8", count * 4 * width),
        )

    @property
    def panel_bytes(self) -> int:
        """The weights of a block."""
        return self.units * UNIT * self.vectors * QUAD * self.how.lanes

    def panel(self, codes: Buffer, tables: Buffer, block: Expr, made: Buffer) -> None:
        """Emit the decoding of a block into `made`; the tables of a vector stay in registers."""
        size, width = unit_bytes(self.how, self.bits), QUAD * self.how.lanes
        with T.serial(0, self.vectors) as vector:
            first = (block * self.vectors + vector) * 4
            looked_up = [
                T.Bind(tables[tirx.Ramp((first + row) * width, 1, width)]) for row in range(4)
            ]
            with T.serial(0, self.units) as unit:
                at = ((block * self.units + unit) * self.vectors + vector) * size
                quads = arrangement(self.how).decode_unit(self.how, self.bits, codes, at, looked_up)
                for quad, values in enumerate(quads):
                    start = ((unit * UNIT + quad) * self.vectors + vector) * width
                    T.buffer_store(made, values, [tirx.Ramp(start, 1, width)])

    def oracle(self, codes: Array, tables: Array) -> Array:
        """By numpy's indexing."""
        isa, width = self.how, QUAD * self.how.lanes
        sizes = (self.blocks, self.units, self.vectors)
        units = codes.reshape(*sizes, -1)
        if isa.by_thread:
            units = codes.reshape(self.units, self.blocks, self.vectors, -1).transpose(1, 0, 2, 3)
        unplaned = arrangement(isa).unplaned(units, self.bits, width)
        rows = unplaned.reshape(*sizes, rows_of(isa), -1, 16)
        lookup = tables.reshape(self.blocks, 1, self.vectors, rows_of(isa), -1, 16)
        lookup = np.broadcast_to(lookup, rows.shape)
        values = np.take_along_axis(lookup, rows.astype(np.int64), -1)
        # From block, unit, vector, row, lane block, quad, byte.
        split = values.reshape(*rows.shape[:5], UNIT, QUAD)
        order = (1, 5, 0, 2, 4, 3, 6) if isa.by_thread else (0, 1, 5, 2, 4, 3, 6)
        return np.ascontiguousarray(split.transpose(*order)).reshape(-1)
