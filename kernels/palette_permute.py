"""Codes of a palette for one thread of a GPU, looked up in its registers by byte permutation.

prmt takes four nibbles of a selector and gives a byte of eight for each. A unit is 4 quads of one
channel, 16 codes, stored so that a shift and a mask make the selector of a quad:

    4 bits     16 bits a quad, a nibble a code
    2 bits     bit 4 j + 2 (q mod 2) of half q div 2: code j of quad q
    3 bits     the 2 low bits so, and a half of bits 4 j + q

A table of 16 takes two permutations and a third that chooses between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm.tirx.script import builder as T

from ptq.kernels.dot import QUAD, Isa
from ptq.kernels.kernel import Array, Buffer, Expr
from ptq.kernels.vectors import span

NIBBLES = np.arange(QUAD, dtype=np.uint16) * 4


def planes(codes: Array, bits: int) -> Array:
    """[..., 1, 16] codes -> [..., unit bytes]."""
    by_quad = codes[..., 0, :].astype(np.uint16).reshape(*codes.shape[:-2], 4, QUAD)

    def nibbles(values: Array) -> Array:
        """A value a code -> 16 bits a quad."""
        return np.asarray(np.bitwise_or.reduce(values << NIBBLES, -1))

    if bits == 4:
        return _bytes(nibbles(by_quad))
    low, high = nibbles(by_quad & 3), nibbles(by_quad >> 2)
    halves = low[..., 0::2] | low[..., 1::2] << 2
    if bits == 2:
        return _bytes(halves)
    ones = np.bitwise_or.reduce(high << np.arange(4, dtype=np.uint16), -1, keepdims=True)
    return _bytes(np.concatenate([halves, ones], -1))


def _bytes(halves: Array) -> Array:
    return np.ascontiguousarray(halves.astype("<u2")).view(np.uint8)


def unplaned(codes: Array, bits: int, width: int) -> Array:
    """The inverse of `planes`: [..., 1, 16]; width is 4."""
    halves = np.ascontiguousarray(codes).view("<u2")
    if bits == 4:
        by_quad = halves[..., None] >> NIBBLES & 15
    else:
        both = np.stack([halves[..., :2], halves[..., :2] >> 2], -1)  # half, quad in it
        low = both.reshape(*halves.shape[:-1], 4)[..., None] >> NIBBLES & 3
        ones = (
            halves[..., 2:] >> np.arange(4, dtype=np.uint16) if bits == 3 else np.zeros((), "<u2")
        )
        by_quad = low | (ones[..., None] >> NIBBLES & 1) << 2
    return by_quad.reshape(*halves.shape[:-1], 1, width * 4).astype(np.uint8)


def decode_unit(isa: Isa, bits: int, codes: Buffer, at: Expr, tables: Sequence[Expr]) -> list[Expr]:
    """The 4 weight quads of a unit whose codes begin at `at`; tables: its channel's, 4 int8x4."""
    del isa
    words = [T.reinterpret("uint32", table) for table in tables]
    return [
        T.Bind(T.reinterpret("int8x4", _look_up(bits, words, selector)))
        for selector in _selectors(bits, codes, at)
    ]


def _selectors(bits: int, codes: Buffer, at: Expr) -> list[Expr]:
    """Of every quad; only their low 16 bits count, and of those only what a code has."""

    def load(start: int, size: int) -> Expr:
        loaded = T.reinterpret(f"uint{8 * size}", codes[span(at + start, size)])
        return T.Bind(T.Cast("uint32", loaded))

    def field(word: Expr, shift: int, mask: int) -> Expr:
        return T.bitwise_and(T.shift_right(word, T.uint32(shift)), T.uint32(mask))

    if bits == 4:
        return [field(load(4 * half, 4), 16 * part, 0xFFFF) for half in (0, 1) for part in (0, 1)]
    # Units of three bits are only aligned to two bytes.
    halves = [load(2 * half, 2) for half in (0, 1)]
    low = [field(halves[quad // 2], 2 * (quad % 2), 0x3333) for quad in range(4)]
    if bits == 2:
        return low
    ones = load(4, 2)
    upper = [T.shift_left(field(ones, quad, 0x1111), T.uint32(2)) for quad in range(4)]
    return [T.bitwise_or(a, b) for a, b in zip(low, upper, strict=True)]


def _look_up(bits: int, table: Sequence[Expr], selector: Expr) -> Expr:
    def permute(a: Expr, b: Expr, nibbles: Expr) -> Expr:
        return T.call_pure_extern("uint32", "__byte_perm", a, b, nibbles)

    if bits == 2:
        return permute(table[0], table[0], selector)
    if bits == 3:
        return permute(table[0], table[1], selector)
    within = T.bitwise_and(selector, T.uint32(0x7777))
    upper = T.shift_right(T.bitwise_and(selector, T.uint32(0x8888)), T.uint32(1))
    first, second = permute(table[0], table[1], within), permute(table[2], table[3], within)
    return permute(first, second, T.bitwise_or(upper, T.uint32(0x3210)))
