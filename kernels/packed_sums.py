"""Sums of two code tensors by x86's vectors of bytes: pairs of products, then packs that saturate.

Every instruction works on each 128 bits by itself. Codes are unpacked and packed by the same
halves, so that they end in the order in which they were.

    y = min(max(sat8(sat16(RNE((a m + b n + c) 2^-S)) + z), low), high)

is Add's formula, because what either saturation cuts is beyond both limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Expr
from ptq.kernels.requantize import Rounding, to_nearest
from ptq.kernels.saturation import pack

HALF = 8
"""Bytes of half of 128 bits."""
PRODUCTS = {32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}
"""vpmaddwd, by the bytes of a vector."""


@dataclass(frozen=True)
class PackedSums:
    """Codes of a m + b n + c times `unit`, a power of two; a and b uint8.

    width: bytes of a vector. factors: m and n. constant: c, which zero points have made of them.
    """

    width: int
    factors: tuple[int, int]
    constant: int
    unit: float
    rounding: Rounding

    @property
    def exact(self) -> bool:
        """True if all fits: 255 times two such factors stays below 2^24, the constant as well."""
        return all(abs(factor) < 2**15 for factor in self.factors) and self.unit <= 1

    def codes(self, on: Binding, a: Expr, b: Expr) -> Expr:
        """uint8 [width] of two vectors of as many."""
        a, b = T.Bind(a), T.Bind(b)
        zeros = T.broadcast(T.uint8(0), self.width)
        pairs = [T.Bind(self._unpacked(a, b, upper)) for upper in (0, 1)]
        rounded = [
            self._rounded(on, self._unpacked(pair, zeros, upper))
            for pair in pairs
            for upper in (0, 1)
        ]
        return pack(self.rounding, rounded, self.width // 4)

    def _unpacked(self, a: Expr, b: Expr, upper: int) -> Expr:
        """Bytes of both in turns, from the lower or upper half of each 128 bits."""
        order = [
            side * self.width + start + upper * HALF + at
            for start in range(0, self.width, 2 * HALF)
            for at in range(HALF)
            for side in (0, 1)
        ]
        return tirx.Shuffle([a, b], [tirx.const(at, "int32") for at in order])

    def _rounded(self, on: Binding, words: Expr) -> Expr:
        """int32 from words of a and b in turns."""
        lanes, (m, n) = self.width // 4, self.factors
        pairs = T.broadcast(T.int32((m & 0xFFFF) | n << 16), lanes)
        kind = f"int16x{2 * lanes}"
        words, pairs = (T.reinterpret(kind, part) for part in (words, pairs))
        sums = T.call_llvm_pure_intrin(f"int32x{lanes}", PRODUCTS[self.width], words, pairs)
        unit = T.broadcast(on.real(self.unit), lanes)
        moved = T.broadcast(on.real(self.constant * self.unit), lanes)
        scaled = T.Cast(f"float32x{lanes}", sums) * unit + moved
        return to_nearest(scaled, lanes)
