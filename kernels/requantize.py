"""Requantisation inside kernels: y = clamp(z + RNE(acc * M / 2^S), low, high).

Exactly, on int64:

    RNE(v / 2^S) = floor((v + 2^(S-1) - 1 + (floor(v / 2^S) & 1)) / 2^S)    for S >= 1

Or in floats, where that is proved to be the same function (`ptq.integer.arithmetic`): the product
is exact below 2^24 in float32, for codes of 16 bits below 2^53 in float64, and whatever is larger
saturates in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.grid import container
from ptq.integer.arithmetic import Requantizer, exact_shift
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.vectors import of_lanes, spread


@dataclass(frozen=True)
class Rounding:
    """The constant half of a requantiser.

    ratio: (M, S) of all channels, S >= 1, or None if each channel has its own.
    floats: vectors are rounded by a float product; only if `floats_are_exact`.
    fractions: every ratio is below 1, so that a product stays within int32.
    """

    zero_point: int
    low: int
    high: int
    ratio: tuple[int, int] | None = None
    floats: bool = False
    fractions: bool = False

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return str(np.dtype(container(self.high)))

    @property
    def float_dtype(self) -> str:
        """In which products and sums are exact where it matters."""
        return "float32" if self.dtype == "uint8" else "float64"

    @staticmethod
    def of(requantizer: Requantizer) -> Rounding:
        """What of the requantiser is not per channel."""
        r = requantizer
        if r.multiplier.ndim or r.shift.ndim:
            return Rounding(r.zero_point, r.low, r.high)
        multiplier, shift = channel_ratios(r, 1)
        return Rounding(r.zero_point, r.low, r.high, (int(multiplier[0]), int(shift[0])))

    def scales(self, channels: int) -> tuple[Parameter, ...]:
        """What `vector` reads of every channel: its ratio M / 2^S, or its M and its S."""
        if self.floats:
            return (Parameter("ratio", "float32", channels),)
        return Parameter("multiplier", "int32", channels), Parameter("shift", "int32", channels)

    def vector(self, acc: Expr, scales: Sequence[Buffer], channels: Expr, lanes: int) -> Expr:
        """Codes from a vector of int32. channels: which ones its lanes are."""
        if self.floats:
            kind = of_lanes(self.float_dtype, lanes)
            return self.real(T.Cast(kind, acc) * T.Cast(kind, scales[0][channels]), lanes)
        return self.integer(acc, scales[0][channels], scales[1][channels], lanes)

    def integer(
        self, acc: Expr, multiplier: Expr = None, shift: Expr = None, lanes: int = 1
    ) -> Expr:
        """Codes of an int32 or int64 accumulator; M and S int32, needed if per channel."""
        kind = of_lanes("int64", lanes)

        def number(value: int) -> Expr:
            return spread(T.int64(value), lanes)

        if self.ratio is not None:
            multiplier, shift = (number(part) for part in self.ratio)
        wide, shift = T.Cast(kind, acc) * T.Cast(kind, multiplier), T.Cast(kind, shift)
        odd = T.bitwise_and(T.shift_right(wide, shift), number(1))
        below_half = T.shift_left(number(1), shift - number(1)) - number(1)
        moved = T.shift_right(wide + below_half + odd, shift) + number(self.zero_point)
        codes = clamp(moved, number(self.low), number(self.high))
        return T.Cast(of_lanes(self.dtype, lanes), codes)

    def real(self, scaled: Expr, lanes: int = 1, dtype: str | None = None) -> Expr:
        """Codes of acc M / 2^S, exact in `float_dtype` or `dtype`. Clamping comes before rounding.

        Both limits are integers, so the result is the same, and the conversion to integers cannot
        overflow.
        """
        kind = dtype or self.float_dtype
        low, high = (
            spread(tirx.const(end - self.zero_point, kind), lanes) for end in (self.low, self.high)
        )
        rounded = to_nearest(clamp(scaled, low, high), lanes, kind)
        moved = rounded + spread(T.int32(self.zero_point), lanes)
        return T.Cast(of_lanes(self.dtype, lanes), moved)

    def oracle(self, acc: Array, multiplier: Array | int, shift: Array | int) -> Array:
        """The same by the reference's arithmetic; M and S broadcast against acc."""
        if self.ratio is not None:
            multiplier, shift = self.ratio
        r = Requantizer(
            np.asarray(multiplier, np.int64), np.asarray(shift, np.int64),
            self.zero_point, self.low, self.high,
        )  # fmt: skip
        return r.apply(np.asarray(acc, np.int64))

    def vector_oracle(self, acc: Array, *scales: Array) -> Array:
        """What `vector` gives; scales broadcast against acc."""
        if not self.floats:
            return self.oracle(acc, *scales)
        rounded = np.rint(acc.astype(self.float_dtype) * scales[0]) + self.zero_point
        return np.asarray(np.clip(rounded, self.low, self.high), self.dtype)


def clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """min(max(x, low), high)."""
    return T.min(T.max(x, low), high)


def to_nearest(x: Expr, lanes: int, kind: str = "float32") -> Expr:
    """int32, halves to even: one instruction for a vector, where LLVM would round, then cast."""
    whole = of_lanes("int32", lanes)
    if lanes == 1 or kind != "float32":  # other languages than LLVM's have this form
        return T.Cast(whole, tirx.nearbyint(x))
    return T.call_llvm_pure_intrin(whole, "llvm.lrint", x)


def channel_ratios(requantizer: Requantizer, channels: int) -> tuple[Array, Array]:
    """M and S of every channel, [channels] int32 each, with every S at least 1."""
    extra = int((requantizer.shift == 0).any())
    multiplier, shift = requantizer.multiplier << extra, requantizer.shift + extra
    return (
        np.broadcast_to(multiplier, (channels,)).astype(np.int32),
        np.broadcast_to(shift, (channels,)).astype(np.int32),
    )


def floats_are_exact(requantizer: Requantizer) -> bool:
    """True if requantisation in `Rounding.float_dtype` is provably that in integers."""
    r = requantizer
    limit = exact_shift(r.zero_point, r.low, r.high)
    return bool((r.shift <= limit).all() and (r.multiplier < 2**24).all())


def for_vectors(requantizer: Requantizer) -> Rounding:
    """What of the requantiser is not per channel, by float products where they are exact."""
    r = requantizer
    floats = floats_are_exact(r)
    fractions = floats and bool((r.ratio < 1).all())
    return Rounding(r.zero_point, r.low, r.high, floats=floats, fractions=fractions)


def load_ratio(rounding: Rounding, multiplier: Buffer, shift: Buffer, channel: Expr) -> list[Expr]:
    """A channel's M and S for `Rounding.integer`; nothing if all channels share them."""
    return [] if rounding.ratio is not None else [multiplier[channel], shift[channel]]
