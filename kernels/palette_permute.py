"""Codes of a palette for one thread of a GPU, looked up in its registers by byte permutation.

prmt takes four nibbles of a selector and gives a byte of eight for each. A unit is 4 quads of one
channel, 16 codes, stored so that a shift and a mask make the selector of a quad:

    4 bits     16 bits a quad, a nibble a code
    2 bits     bit 4 j + 2 (q mod 2) of half q div 2: code j of quad q
    3 bits     the 2 low bits so, and a half of bits 4 j + q

Units of 4 and of 2 bits are two *pairs* of quads, which tensor cores take by themselves. A table of
16 takes two permutations and a third that chooses between them.
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
    by_quad = codes[..., 0, :].reshape(*codes.shape[:-2], 2, 2, QUAD)
    if bits != 3:
        return pairs(by_quad, bits).reshape(*codes.shape[:-2], -1)
    high = _nibbles(by_quad >> 2).reshape(*codes.shape[:-2], 4)
    ones = np.bitwise_or.reduce(high << np.arange(4, dtype=np.uint16), -1, keepdims=True)
    low = pairs(by_quad & 3, 2).reshape(*codes.shape[:-2], -1)
    return np.concatenate([low, _bytes(ones)], -1)


def pairs(codes: Array, bits: int) -> Array:
    """[..., 2, 4] codes of 4 or 2 bits -> [..., bytes of a pair]."""
    quads = _nibbles(codes)
    return _bytes(quads if bits == 4 else quads[..., :1] | quads[..., 1:] << 2)


def _nibbles(codes: Array) -> Array:
    """A value a code -> 16 bits a quad."""
    return np.asarray(np.bitwise_or.reduce(codes.astype(np.uint16) << NIBBLES, -1))


def _bytes(halves: Array) -> Array:
    return np.ascontiguousarray(halves.astype("<u2")).view(np.uint8)


def unpaired(codes: Array, bits: int) -> Array:
    """The inverse of `pairs`: [..., 2, 4]."""
    halves = np.ascontiguousarray(codes).view("<u2")
    quads = halves if bits == 4 else np.concatenate([halves, halves >> 2], -1)
    return np.asarray(quads[..., None] >> NIBBLES & (1 << bits) - 1, np.uint8)


def unplaned(codes: Array, bits: int, width: int) -> Array:
    """The inverse of `planes`: [..., 1, 16]; width is 4."""
    kept = 2 if bits == 3 else bits
    low = unpaired(codes[..., : 2 * kept].reshape(*codes.shape[:-1], 2, kept), kept)
    by_quad = low.reshape(*codes.shape[:-1], 4, QUAD)
    if bits == 3:
        ones = np.ascontiguousarray(codes[..., 4:]).view("<u2") >> np.arange(4, dtype=np.uint16)
        by_quad = by_quad | (ones[..., None] >> NIBBLES & 1).astype(np.uint8) << 2
    return np.asarray(by_quad.reshape(*codes.shape[:-1], 1, width * 4))


def decode_unit(isa: Isa, bits: int, codes: Buffer, at: Expr, tables: Sequence[Expr]) -> list[Expr]:
    """The 4 weight quads of a unit whose codes begin at `at`; tables: its channel's, 4 int8x4."""
    del isa
    words = [T.reinterpret("uint32", table) for table in tables]
    found = [look_up(bits, words, selector) for selector in _selectors(bits, codes, at)]
    return [T.Bind(T.reinterpret("int8x4", quad)) for quad in found]


def pair_bytes(bits: int) -> int:
    """Bytes that the codes of two quads take."""
    return bits


def pair_selectors(bits: int, codes: Buffer, at: Expr) -> list[Expr]:
    """Of two quads of 4 or 2 bits; only their low 16 bits count."""
    word = _load(codes, at, pair_bytes(bits))
    shift, mask = {4: (16, 0xFFFF), 2: (2, 0x3333)}[bits]
    return [_field(word, shift * part, mask) for part in range(2)]


def _selectors(bits: int, codes: Buffer, at: Expr) -> list[Expr]:
    """Of every quad of a unit; one of three bits is only aligned to two bytes."""
    kept = 2 if bits == 3 else bits
    low = [s for pair in range(2) for s in pair_selectors(kept, codes, at + pair * kept)]
    if bits != 3:
        return low
    ones = _load(codes, at + 4, 2)
    upper = [T.shift_left(_field(ones, quad, 0x1111), T.uint32(2)) for quad in range(4)]
    return [T.bitwise_or(a, b) for a, b in zip(low, upper, strict=True)]


def _load(codes: Buffer, at: Expr, size: int) -> Expr:
    """So many bytes as an uint32."""
    loaded = T.reinterpret(f"uint{8 * size}", codes[span(at, size)])
    return T.Bind(T.Cast("uint32", loaded))


def _field(word: Expr, shift: int, mask: int) -> Expr:
    return T.bitwise_and(T.shift_right(word, T.uint32(shift)), T.uint32(mask))


def look_up(bits: int, table: Sequence[Expr], selector: Expr) -> Expr:
    """Four weights as an uint32; table: of the channel, uint32, as many as `bits` needs."""

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
