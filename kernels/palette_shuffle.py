"""Codes of a palette for vectors, looked up by byte shuffles.

A *unit* is 4 quads of one vector of channels, 4 vectors of `width` = 4 * lanes bytes. Its codes lie
with 16 neighbouring weights of one channel in each 128-bit lane, so that one shuffle looks up all
of them in the channel's table; a transpose of 4 x 4 quads then gives the order of the kernel:

    row r, lane block b: channel 4 b + r, its quads 0..3      (shuffled by table r)
    vector q, lane 4 b + r: quad q of channel 4 b + r         (what `dots` multiplies)

Planes: 4 bits are one, 2 bits are one, 3 bits are 2 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.dot import QUAD, Isa
from ptq.kernels.kernel import Array, Buffer, Expr


def planes(codes: Array, bits: int) -> Array:
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


def unplaned(codes: Array, bits: int, width: int) -> Array:
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
