"""Vectors that add four rows at a time: from bytes of four rows to quads, and from sums to bytes.

x86 interleaves and packs bytes within 128 bits only. So a block of channels is four vectors in an
order that comes of interleaving them so; packing puts the channels in order again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.dot import QUAD
from ptq.kernels.kernel import Array, Buffer, Expr
from ptq.kernels.requantize import Rounding
from ptq.kernels.saturation import VECTORS, can_pack, packed

CHUNK = 16
"""Bytes within which x86 moves bytes."""


@dataclass(frozen=True)
class Width:
    """Vectors of so many int32 sums.

    dot: sums of a quad a lane, added to an accumulator: (int32, codes, int8 weights) -> int32.
    signed: codes are int8 there, 128 less than they are. packs: sums are packed as x86 does.
    """

    lanes: int
    dot: Callable[[Expr, Expr, Expr], Expr]
    signed: bool = False
    packs: bool = False

    @property
    def channels(self) -> int:
        """Of a block."""
        return VECTORS * self.lanes

    @property
    def size_bytes(self) -> int:
        """Of a vector."""
        return QUAD * self.lanes

    @property
    def order(self) -> Array:
        """The channel of every lane of a block: [vectors, lanes]."""
        chunks = np.arange(self.channels).reshape(-1, VECTORS, CHUNK // VECTORS)
        return chunks.transpose(1, 0, 2).reshape(VECTORS, self.lanes)

    def quads(self, rows: Sequence[Expr]) -> list[Expr]:
        """A block's vectors of quads, from a block's bytes of four rows."""
        low, high = (
            [_interleave(a, b, self.channels, 1, half) for half in range(2)]
            for a, b in (rows[:2], rows[2:])
        )
        made = [
            _interleave(low[part], high[part], self.channels, 2, half)
            for part in range(2)
            for half in range(2)
        ]
        return [self._codes(quad) for quad in made]

    def _codes(self, quad: Expr) -> Expr:
        """Flipping the top bit takes 128 off."""
        if not self.signed:
            return quad
        return T.bitwise_xor(quad, T.broadcast(T.uint8(128), self.size_bytes))

    def codes(
        self, sums: Sequence[Expr], scales: Sequence[Buffer], lanes: Sequence[Expr],
        rounding: Rounding,
    ) -> Expr:  # fmt: skip
        """A block's codes from its vectors of sums. lanes: where their scales are."""
        if self.packs and can_pack(rounding):
            return packed(rounding, sums, scales[0], lanes, self.lanes)
        codes = [
            T.Bind(rounding.vector(acc, scales, at, self.lanes))
            for acc, at in zip(sums, lanes, strict=True)
        ]
        return tirx.Shuffle(codes, _indices(np.argsort(self.order.reshape(-1))))


def _indices(order: Iterable[int]) -> list[Expr]:
    return [tirx.const(int(i), "int32") for i in order]


def _interleave(a: Expr, b: Expr, size: int, unit: int, half: int) -> Expr:
    """Units of bytes from both in turns, from one half of every chunk."""
    order = [
        side * size + chunk + half * CHUNK // 2 + start + byte
        for chunk in range(0, size, CHUNK)
        for start in range(0, CHUNK // 2, unit)
        for side in range(2)
        for byte in range(unit)
    ]
    return T.Bind(tirx.Shuffle([a, b], _indices(order)))


def _intrinsic(name: str, lanes: int) -> Callable[[Expr, Expr, Expr], Expr]:
    def dot(acc: Expr, codes: Expr, weights: Expr) -> Expr:
        return T.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, codes, weights)

    return dot


def _vnni(lanes: int) -> Width:
    """vpdpbusd; LLVM has one name, for AVX-VNNI too."""
    return Width(lanes, _intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", lanes), packs=True)


def _sdot(acc: Expr, codes: Expr, weights: Expr) -> Expr:
    dot = _intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", 4)
    return dot(acc, T.reinterpret("int8x16", codes), weights)


_X86 = _vnni(16), _vnni(8), _vnni(4)
WIDTHS = {
    "avx512vnni": _X86,
    "avxvnni": _X86[1:],
    "dotprod": (Width(4, _sdot, signed=True),),
}
"""Widest first; processors that are not here add two products at a time."""
