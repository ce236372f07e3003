"""Requantisation inside kernels: y = clamp(z + RNE(acc * M / 2^S), low, high).

Exactly, on int64:

    RNE(v / 2^S) = floor((v + 2^(S-1) - 1 + (floor(v / 2^S) & 1)) / 2^S)    for S >= 1

Or in float32, where that is proved to be the same function (`ptq.integer.arithmetic`): the product
is exact below 2^24, and whatever is larger saturates in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.integer.arithmetic import Requantizer, exact_shift
from ptq.kernels.kernel import Array, Buffer, Expr


@dataclass(frozen=True)
class Rounding:
    """The constant half of a requantiser.

    ratio: (M, S) of all channels, S >= 1, or None if each channel has its own.
    """

    zero_point: int
    low: int
    high: int
    ratio: tuple[int, int] | None = None

    @staticmethod
    def of(requantizer: Requantizer) -> Rounding:
        """What of the requantiser is not per channel."""
        r = requantizer
        if r.multiplier.ndim or r.shift.ndim:
            return Rounding(r.zero_point, r.low, r.high)
        multiplier, shift = channel_ratios(r, 1)
        return Rounding(r.zero_point, r.low, r.high, (int(multiplier[0]), int(shift[0])))

    def integer(self, acc: Expr, multiplier: Expr = None, shift: Expr = None) -> Expr:
        """uint8 from an int32 or int64 accumulator; M and S int32, needed if per channel."""
        if self.ratio is not None:
            multiplier, shift = (T.int64(part) for part in self.ratio)
        wide, shift = T.Cast("int64", acc) * T.Cast("int64", multiplier), T.Cast("int64", shift)
        odd = (wide >> shift) & T.int64(1)
        below_half = (T.int64(1) << (shift - T.int64(1))) - T.int64(1)
        rounded = (wide + below_half + odd) >> shift
        moved = rounded + T.int64(self.zero_point)
        return T.Cast("uint8", clamp(moved, T.int64(self.low), T.int64(self.high)))

    def floating(self, acc: Expr, ratio: Expr, lanes: int) -> Expr:
        """uint8 vector from an int32 one, by a float32 product; only if `floats_are_exact`.

        Clamping comes before rounding: both limits are integers, so the result is the same, and
        the conversion to integers cannot overflow.
        """
        scaled = T.Cast(f"float32x{lanes}", acc) * ratio
        low, high = (
            T.broadcast(T.float32(end - self.zero_point), lanes) for end in (self.low, self.high)
        )
        rounded = T.Cast(f"int32x{lanes}", tirx.nearbyint(clamp(scaled, low, high)))
        moved = rounded + T.broadcast(T.int32(self.zero_point), lanes)
        return T.Cast(f"uint8x{lanes}", moved)

    def oracle(self, acc: Array, multiplier: Array | int, shift: Array | int) -> Array:
        """The same by the reference's arithmetic; M and S broadcast against acc."""
        if self.ratio is not None:
            multiplier, shift = self.ratio
        r = Requantizer(
            np.asarray(multiplier, np.int64), np.asarray(shift, np.int64),
            self.zero_point, self.low, self.high,
        )  # fmt: skip
        return r.apply(np.asarray(acc, np.int64))


def clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """min(max(x, low), high)."""
    return T.min(T.max(x, low), high)


def channel_ratios(requantizer: Requantizer, channels: int) -> tuple[Array, Array]:
    """M and S of every channel, [channels] int32 each, with every S at least 1."""
    extra = int((requantizer.shift == 0).any())
    multiplier, shift = requantizer.multiplier << extra, requantizer.shift + extra
    return (
        np.broadcast_to(multiplier, (channels,)).astype(np.int32),
        np.broadcast_to(shift, (channels,)).astype(np.int32),
    )


def floats_are_exact(requantizer: Requantizer) -> bool:
    """True if float32 requantisation is provably the integer one for every accumulator."""
    r = requantizer
    limit = exact_shift(r.zero_point, r.low, r.high)
    return bool((r.shift <= limit).all() and (r.multiplier < 2**24).all())


def load_ratio(rounding: Rounding, multiplier: Buffer, shift: Buffer, channel: Expr) -> list[Expr]:
    """A channel's M and S for `Rounding.integer`; nothing if all channels share them."""
    return [] if rounding.ratio is not None else [multiplier[channel], shift[channel]]
