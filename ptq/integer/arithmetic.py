"""The integer contract: exact requantisation by short multipliers.

    y = clamp(z + RNE(acc * M / 2^S), low, high)

RNE is round half to even on exact integers. onnxruntime computes float32(acc) * m and rounds half
to even. Both are the same function when m = M / 2^S exactly and no product that matters needs
more than 24 bits: |acc| * M < 2^24 wherever the result is not yet saturated. Unsaturated results
are below `reach` = max(high - z, z - low) + 1/2 in magnitude, so S with reach * 2^S < 2^24 proves
it for every accumulator; beyond it both sides saturate, because both are monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.grid import container

FLOAT_BITS = 24
DOUBLE_BITS = 52
MAX_SHIFT = 30
INT32_LIMIT = 2**31
FARTHEST_NEIGHBOUR = 16


@dataclass(frozen=True)
class Requantizer:
    """y = clamp(zero_point + RNE(acc * multiplier / 2^shift), low, high).

    multiplier, shift: [] or [channels] int64; the channel axis is the step's business.
    """

    multiplier: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def dtype(self) -> Any:
        """The container of the codes."""
        return container(self.high)

    @property
    def ratio(self) -> npt.NDArray[np.float32]:
        """M / 2^S: exactly representable in float32."""
        return np.asarray(self.multiplier / np.exp2(self.shift), np.float32)

    def apply(self, acc: npt.NDArray[np.int64], axis: int | None = None) -> npt.NDArray[np.uint8]:
        """Requantise integers exactly: acc int64 -> codes of the same shape."""
        multiplier, shift = self.multiplier, self.shift
        if multiplier.ndim and axis is not None:
            shape = [1] * acc.ndim
            shape[axis] = -1
            multiplier, shift = multiplier.reshape(shape), shift.reshape(shape)
        rounded = shift_half_even(acc * multiplier, shift)
        return np.asarray(np.clip(rounded + self.zero_point, self.low, self.high), self.dtype)

    def simulate(
        self, acc: npt.NDArray[np.int64], axis: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """The same by float32 product and rint, as float runtimes compute it.

        Equal to `apply` wherever the certificate says exact; that is what tests compare. Codes of
        16 bits are made in float64, which is exact.
        """
        if self.dtype is not np.uint8:
            return self.apply(acc, axis)
        ratio = self.ratio
        if ratio.ndim and axis is not None:
            shape = [1] * acc.ndim
            shape[axis] = -1
            ratio = ratio.reshape(shape)
        rounded = np.rint(acc.astype(np.float32) * ratio) + np.float32(self.zero_point)
        return np.asarray(np.clip(rounded, self.low, self.high), np.uint8)


def shift_half_even(
    value: npt.NDArray[np.int64], shift: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """RNE(value / 2^shift) on int64; shift >= 0 broadcasts."""
    quotient = value >> shift
    twice = (value - (quotient << shift)) << 1
    one = np.int64(1) << shift
    up = (twice > one) | ((twice == one) & ((quotient & 1) == 1))
    return np.asarray(quotient + up, np.int64)


def exact_shift(zero_point: int, low: int = 0, high: int = 255) -> int:
    """The largest S whose products are exact for every unsaturated result.

    In float32, or in float64 if the codes have 16 bits.
    """
    bits = FLOAT_BITS if container(high) is np.uint8 else DOUBLE_BITS
    reach = max(high - zero_point, zero_point - low, 1) + 0.5
    shift = 0
    while reach * 2.0 ** (shift + 1) < 2**bits and shift < MAX_SHIFT:
        shift += 1
    return shift


def short_multiplier(
    ratio: npt.NDArray[np.floating], limit: int, bits: int = FLOAT_BITS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """M and S with M / 2^S nearest to `ratio` > 0, 0 <= S <= limit, 1 <= M < 2^bits."""
    ratio = np.asarray(ratio, np.float64)
    _, exponent = np.frexp(np.maximum(ratio, 2.0**-200))
    shift = np.clip(bits - exponent, 0, limit).astype(np.int64)
    multiplier = np.rint(ratio * np.exp2(shift))
    shift = np.where((multiplier >= 1 << bits) & (shift > 0), shift - 1, shift)
    largest = (1 << bits) - 1  # beyond it everything but zero saturates anyway
    multiplier = np.clip(np.rint(ratio * np.exp2(shift)), 1, largest).astype(np.int64)
    while (even := (multiplier % 2 == 0) & (shift > 0)).any():
        multiplier = np.where(even, multiplier // 2, multiplier)
        shift = np.where(even, shift - 1, shift)
    return multiplier, shift


def onnx_ratio(
    x_scale: np.float32, w_scale: npt.NDArray[np.float32], y_scale: np.float32
) -> npt.NDArray[np.float32]:
    """The float32 multiplier that onnxruntime computes from three scales."""
    return np.float32(x_scale) * np.asarray(w_scale, np.float32) / np.float32(y_scale)


def scales_for_ratio(
    ratio: npt.NDArray[np.float32], x_scale: np.float32, y_scale: np.float32
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Weight scales for which onnxruntime's float32 multiplier equals `ratio` bit for bit.

    Tries the nearest float and its neighbours. Returns [n] float32 scales and [n] bool: found.
    """
    shape, ratio = np.shape(ratio), np.asarray(ratio, np.float32).reshape(-1)
    best = (ratio.astype(np.float64) * float(y_scale) / float(x_scale)).astype(np.float32)
    found = onnx_ratio(x_scale, best, y_scale) == ratio
    for direction in (np.float32(0), np.float32(np.inf)):
        missing = np.flatnonzero(~found)
        candidate = best[missing]
        for _ in range(3):
            candidate = np.nextafter(candidate, direction)
            hit = onnx_ratio(x_scale, candidate, y_scale) == ratio[missing]
            best[missing[hit]], found[missing[hit]] = candidate[hit], True
    return best.reshape(shape), found.reshape(shape)


def nudge_scales(
    w_scale: npt.NDArray[np.floating], x_scale: np.float32, y_scale: np.float32, limit: int
) -> npt.NDArray[np.float32]:
    """The nearest weight scales for which x_scale * w_scale / y_scale is short and exact.

    Tries M, then its neighbours outwards, until a float32 scale gives M / 2^S exactly. The few
    channels that find none keep a scale off by at most one unit in the last place: the integer
    program still rounds to a short M, only the target cannot print this layer's real scales.
    w_scale: [n] > 0, limit: the largest S (`exact_shift`). Returns [n] float32.
    """
    wanted = np.asarray(w_scale, np.float64) * float(x_scale) / float(y_scale)
    multiplier, shift = short_multiplier(wanted, limit)
    ratio = (multiplier * np.exp2(-shift.astype(np.float64))).astype(np.float32)
    scales, found = scales_for_ratio(ratio, x_scale, y_scale)
    whole = np.rint(wanted * 2.0**limit)
    for offset in (sign * step for step in range(1, FARTHEST_NEIGHBOUR + 1) for sign in (1, -1)):
        missing = np.flatnonzero(~found)
        if not len(missing):
            break
        near = np.maximum(whole[missing] + offset, 1) * 2.0**-limit
        ratio = near.astype(np.float32)
        others, hit = scales_for_ratio(ratio, x_scale, y_scale)
        hit &= ratio == near
        scales[missing[hit]], found[missing[hit]] = others[hit], True
    return scales
