"""Weights as codes of 2, 3 or 4 bits into a table of their channel, decoded by byte shuffles.

What a channel's weights were rounded to does not matter: at most 2^bits values are a palette, so
uniform grids with zero points and power grids are one case.

A *unit* is 4 quads of one vector of channels, 4 vectors of `width` = 4 * lanes bytes. Its codes lie
with 16 neighbouring weights of one channel in each 128-bit lane, so that one shuffle looks up all
of them in the channel's table; a transpose of 4 x 4 quads then gives the order of the kernel:

    row r, lane block b: channel 4 b + r, its quads 0..3      (shuffled by table r)
    vector q, lane 4 b + r: quad q of channel 4 b + r         (what `dots` multiplies)

Planes: 4 bits are one, 2 bits are one, 3 bits are 2 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.dot import ISAS, QUAD, Isa
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter

UNIT = 4
BITS = (2, 3, 4)


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


def find_palette(packed: Array, isa: Isa) -> Palette | None:
    """The narrowest palette of packed weights [blocks, runs, quads, vectors, lanes, 4], or None.

    There is none if a channel has more than 16 values (zeros of padding count), or if the runs are
    not of whole units.
    """
    blocks, runs, quads, vectors, lanes, _ = packed.shape
    if quads % UNIT:
        return None
    units = runs * quads // UNIT
    split = packed.reshape(blocks, units, UNIT, vectors, lanes // 4, 4, QUAD)
    rows = split.transpose(0, 3, 5, 4, 1, 2, 6)  # block, vector, row, lane block, unit, quad, byte
    shape = rows.shape
    tables = np.zeros((*shape[:4], 16), np.int8)
    codes = np.empty((*shape[:4], units, 16), np.uint8)
    most = 1
    for place in np.ndindex(*shape[:4]):
        values, found = np.unique(rows[place], return_inverse=True)
        if len(values) > 16:
            return None
        most = max(most, len(values))
        tables[place][: len(values)] = values
        codes[place] = found.reshape(units, 16)
    bits = next(bits for bits in BITS if most <= 1 << bits)
    # block, unit, vector, row, bytes of a vector
    by_unit = codes.transpose(0, 4, 1, 2, 3, 5).reshape(blocks, units, vectors, 4, QUAD * lanes)
    return Palette(bits, _planes(by_unit, bits), tables.reshape(blocks, vectors, 4, QUAD * lanes))


def _planes(codes: Array, bits: int) -> Array:
    """[..., 4, width] codes -> [..., unit bytes]."""
    low, high = codes & 3, codes >> 2 & 1
    if bits == 4:
        return np.concatenate([codes[..., r, :] | codes[..., r + 1, :] << 4 for r in (0, 2)], -1)
    pairs: Array = np.bitwise_or.reduce([low[..., r, :] << 2 * r for r in range(4)])
    if bits == 2:
        return pairs
    half = codes.shape[-1] // 2
    parts = [(row, part) for row in range(4) for part in range(2)]
    ones = np.bitwise_or.reduce(
        [high[..., r, p * half : (p + 1) * half] << 4 * p + r for r, p in parts]
    )
    return np.concatenate([pairs, ones], -1)


def decode_unit(isa: Isa, bits: int, codes: Buffer, at: Expr, tables: Sequence[Expr]) -> list[Expr]:
    """The 4 weight vectors of a unit whose codes begin at `at`; tables: its vector's 4, int8."""
    rows = []
    for table, code in zip(tables, _codes(isa, bits, codes, at), strict=True):
        found = isa.shuffle(table, code)
        rows.append(T.Bind(T.reinterpret(f"int32x{isa.lanes}", found)))
    kind = f"int8x{QUAD * isa.lanes}"
    return [T.Bind(T.reinterpret(kind, vector)) for vector in _transpose(rows, isa.lanes)]


def _codes(isa: Isa, bits: int, codes: Buffer, at: Expr) -> list[Expr]:
    """Row by row, uint8 vectors."""
    width = QUAD * isa.lanes

    def every(value: int) -> Expr:
        return T.broadcast(T.uint8(value), width)

    def load(start: int, size: int) -> Expr:
        return T.Bind(codes[tirx.Ramp(at + start, 1, size)])

    def field(vector: Expr, shift: int, mask: int) -> Expr:
        moved = T.shift_right(vector, every(shift)) if shift else vector
        return T.bitwise_and(moved, every(mask))

    if bits == 4:
        return [field(v, s, 15) for v in (load(0, width), load(width, width)) for s in (0, 4)]
    pairs = load(0, width)
    low = [field(pairs, 2 * row, 3) for row in range(4)]
    if bits == 2:
        return low
    ones = load(width, width // 2)
    both = T.Bind(tirx.Shuffle([ones, ones], [tirx.const(i, "int32") for i in range(width)]))
    upper = tirx.Shuffle(
        [T.broadcast(T.uint8(0), width // 2), T.broadcast(T.uint8(4), width // 2)],
        [tirx.const(i, "int32") for i in range(width)],
    )
    # The first half of a row has its bits at `row`, the second at 4 + row.
    aligned = T.Bind(T.shift_right(both, upper))
    return [
        T.bitwise_or(low[row], T.shift_left(field(aligned, row, 1), every(2))) for row in range(4)
    ]


def _transpose(rows: Sequence[Expr], lanes: int) -> list[Expr]:
    """4 x 4 int32 in every 128-bit lane, by the two interleavings that processors have."""

    def mix(a: Expr, b: Expr, picks: tuple[int, ...]) -> Expr:
        """picks: per result element of a lane, 0..3 from a, 4..7 from b."""
        order = [
            base + pick if pick < 4 else lanes + base + pick - 4
            for base in range(0, lanes, 4)
            for pick in picks
        ]
        return T.Bind(tirx.Shuffle([a, b], [tirx.const(i, "int32") for i in order]))

    first, second = (mix(rows[0], rows[1], p) for p in ((0, 4, 1, 5), (2, 6, 3, 7)))
    third, fourth = (mix(rows[2], rows[3], p) for p in ((0, 4, 1, 5), (2, 6, 3, 7)))
    pairs = ((first, third), (second, fourth))
    return [mix(a, b, p) for a, b in pairs for p in ((0, 1, 4, 5), (2, 3, 6, 7))]


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
        """codes uint8, tables int8, weights int8."""
        width, count = QUAD * self.how.lanes, self.blocks * self.vectors
        return (
            Parameter("codes", "uint8", count * self.units * unit_bytes(self.how, self.bits)),
            Parameter("tables", "int8", count * 4 * width),
            Parameter("weight", "int8", count * self.units * UNIT * width),
        )

    def emit(self, on: Binding, codes: Buffer, tables: Buffer, weight: Buffer) -> None:
        """Unit by unit; the tables of a vector stay in registers."""
        size, width = unit_bytes(self.how, self.bits), QUAD * self.how.lanes
        work = self.units * UNIT * width
        with on.nest([self.blocks, self.vectors], work, fused=2) as (block, vector):
            job = block * self.vectors + vector
            looked_up = [
                T.Bind(tables[tirx.Ramp((job * 4 + row) * width, 1, width)]) for row in range(4)
            ]
            with T.serial(0, self.units) as unit:
                at = ((block * self.units + unit) * self.vectors + vector) * size
                quads = decode_unit(self.how, self.bits, codes, at, looked_up)
                for quad, values in enumerate(quads):
                    place = (block * self.units + unit) * UNIT + quad
                    start = (place * self.vectors + vector) * width
                    T.buffer_store(weight, values, [tirx.Ramp(start, 1, width)])

    def oracle(self, codes: Array, tables: Array) -> Array:
        """By numpy's indexing."""
        width = QUAD * self.how.lanes
        units = codes.reshape(self.blocks, self.units, self.vectors, -1)
        rows = _unplaned(units, self.bits, width).reshape(*units.shape[:3], 4, -1, 16)
        lookup = tables.reshape(self.blocks, 1, self.vectors, 4, -1, 16)
        lookup = np.broadcast_to(lookup, rows.shape)
        values = np.take_along_axis(lookup, rows.astype(np.int64), -1)
        # From block, unit, vector, row, lane block, quad, byte.
        split = values.reshape(*rows.shape[:5], UNIT, QUAD)
        return np.ascontiguousarray(split.transpose(0, 1, 5, 2, 4, 3, 6)).reshape(-1)


def _unplaned(codes: Array, bits: int, width: int) -> Array:
    """The inverse of `_planes`: [..., 4, width]."""
    if bits == 4:
        halves = (codes[..., :width], codes[..., width:])
        return np.stack([v >> s & 15 for v in halves for s in (0, 4)], -2)
    low = np.stack([codes[..., :width] >> 2 * r & 3 for r in range(4)], -2)
    if bits == 2:
        return low
    ones = codes[..., width:]
    high = [np.concatenate([ones >> 4 * part + r & 1 for part in range(2)], -1) for r in range(4)]
    return np.asarray(low | np.stack(high, -2) << 2)
