"""Four products at a time: what each processor has for sums of unsigned codes times int8 weights.

A quad is four neighbouring products that one lane of int32 collects. AVX2 multiplies and adds pairs
in 16 bits first (vpmaddubsw), which saturates unless the weights are safe (ptq.integer.pairs);
where they are small enough, the sums of several quads fit in 16 bits, too, and are widened once.
VNNI (x86), the dot product of Armv8.2 and dp4a (CUDA) add all four in 32 bits; Arm's wants signed
codes. A thread of a GPU is a vector of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Expr

Array = npt.NDArray[Any]
QUAD = 4


@dataclass(frozen=True)
class Isa:
    """An instruction set's way to multiply.

    lanes: int32 sums of one vector. pairs: adds in 16 bits, so that weights must be safe.
    dots: sums of int32 lanes for quads of codes (each one int32 of four codes, broadcast) and of
    weights, added to an accumulator.
    shuffle: bytes of a table by codes below 16, in each 128-bit lane: (int8, uint8) -> int8.
    offset: what `dots` takes off every code before it multiplies; the bias has to make up for it.
    pairs_of_words: has AVX2's sum of two 16-bit products in 32 bits (vpmaddwd).
    alignment: quads of codes begin at multiples of so many bytes.
    by_thread: neighbours of a vector are other threads', so that packed weights lie together for
    neighbouring blocks of channels.
    operands: types of codes and weights; a quad has fewer of wider ones.
    packs: has AVX-512's packs of words and bytes that saturate.
    """

    name: str
    lanes: int
    pairs: bool
    dots: Callable[[Expr, Sequence[Expr], Sequence[Expr]], Expr]
    shuffle: Callable[[Expr, Expr], Expr]
    offset: int = 0
    pairs_of_words: bool = True
    alignment: int = 1
    by_thread: bool = False
    operands: tuple[str, str] = ("uint8", "int8")
    packs: bool = False


def _avx2(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """vpmaddubsw for every quad, added in 16 bits, then one vpmaddwd with ones."""
    total = None
    for code, weight in zip(codes, weights, strict=True):
        quad = T.reinterpret("uint8x32", T.broadcast(code, 8))
        pair = T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", quad, weight)
        total = pair if total is None else total + pair
    ones = T.broadcast(T.int16(1), 16)
    return acc + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", total, ones)


def _words(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """vpmaddwd for every quad, which is a pair of 16-bit words; it does not saturate."""
    for code, weight in zip(codes, weights, strict=True):
        pair, factors = (T.reinterpret("int16x16", x) for x in (T.broadcast(code, 8), weight))
        acc = acc + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pair, factors)
    return acc


def _words_512(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """vpdpwssd for every quad, which is a pair of 16-bit words; it does not saturate."""
    for code, weight in zip(codes, weights, strict=True):
        pair, factors = (T.reinterpret("int16x32", x) for x in (T.broadcast(code, 16), weight))
        acc = T.call_llvm_pure_intrin(
            "int32x16", "llvm.x86.avx512.vpdpwssd.512", acc, pair, factors
        )
    return acc


def _vnni(lanes: int) -> Callable[[Expr, Sequence[Expr], Sequence[Expr]], Expr]:
    """vpdpbusd for every quad; it does not saturate."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"  # LLVM has one name, for AVX-VNNI too

    def dots(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
        for code, weight in zip(codes, weights, strict=True):
            quad = T.reinterpret(f"uint8x{4 * lanes}", T.broadcast(code, lanes))
            acc = T.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, quad, weight)
        return acc

    return dots


def _sdot(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """sdot for every quad; flipping the top bit of an unsigned code takes 128 off it."""
    for code, weight in zip(codes, weights, strict=True):
        signed = T.bitwise_xor(code, T.int32(-0x7F7F7F80))
        quad = T.reinterpret("int8x16", T.broadcast(signed, 4))
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        acc = T.call_llvm_pure_intrin("int32x4", name, acc, quad, weight)
    return acc


def _dp4a(acc: Expr, codes: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    """dp4a.u32.s32 for every quad."""
    for code, weight in zip(codes, weights, strict=True):
        quad, factors = T.Cast("uint32", code), T.reinterpret("int32", weight)
        acc = T.call_pure_extern("int32", "__dp4a", quad, factors, acc)
    return acc


def _shuffle(name: str, width: int) -> Callable[[Expr, Expr], Expr]:
    def shuffle(table: Expr, codes: Expr) -> Expr:
        index = T.reinterpret(f"int8x{width}", codes)
        return T.call_llvm_pure_intrin(f"int8x{width}", name, table, index)

    return shuffle


_SHUFFLE_256 = _shuffle("llvm.x86.avx2.pshuf.b", 32)
AVX2 = Isa("avx2", 8, True, _avx2, _SHUFFLE_256)
AVX_VNNI = Isa("avxvnni", 8, False, _vnni(8), _SHUFFLE_256)
AVX512_VNNI = Isa(
    "avx512vnni", 16, False, _vnni(16), _shuffle("llvm.x86.avx512.pshuf.b.512", 64), packs=True
)
DOTPROD = Isa(
    "dotprod", 4, False, _sdot, _shuffle("llvm.aarch64.neon.tbl1.v16i8", 16), offset=128,
    pairs_of_words=False,
)  # fmt: skip
DP4A = Isa(
    "dp4a", 1, False, _dp4a, _shuffle("", 4), pairs_of_words=False, alignment=QUAD, by_thread=True
)
_WORDS = ("int16", "int16")
WORDS = Isa("words", 8, False, _words, _SHUFFLE_256, operands=_WORDS)
WORDS_512 = Isa("words512", 16, False, _words_512, AVX512_VNNI.shuffle, operands=_WORDS, packs=True)
"""For operands that are centred and widened, on AVX2 and AVX512-VNNI; nobody's first choice."""
ISAS = {isa.name: isa for isa in (AVX512_VNNI, AVX_VNNI, AVX2, DOTPROD, DP4A, WORDS, WORDS_512)}
"""Best first."""


def choose(features: frozenset[str]) -> Isa | None:
    """The best that a processor has, or None."""
    return next((isa for name, isa in ISAS.items() if name in features), None)


def safe_quads(weights: Array, most: int = 4) -> int:
    """How many quads in a row 16 bits can add for any codes: most, most / 2, ..., 1, or 0.

    weights: int8 [..., quads, lanes, 4], in the order that the kernel walks; quads a multiple of
    `most`. Both signs are bounded apart, so that every sum on the way is, too.
    """
    wide = weights.astype(np.int64).reshape(*weights.shape[:-1], 2, 2)
    sides = [255 * np.maximum(sign * wide, 0).sum(axis=-1) for sign in (1, -1)]
    group = most
    while group >= 1:
        shape = (*weights.shape[:-3], -1, group, weights.shape[-2], 2)
        positive, negative = (side.reshape(shape).sum(axis=-3).max() for side in sides)
        if positive < 2**15 and negative <= 2**15:
            return group
        group //= 2
    return 0
