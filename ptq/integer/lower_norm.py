"""Lower layer norm and RMS norm: their integers, and how many bits each of them gets.

With d = code - zero_point of the input, n elements a row, s and s' the scales of input and output,
and a mean that is rounded to 2^-f of a code (f = 0 for 16-bit codes, and what SQUARES_BITS leave
for 8-bit ones):

    centred   u = 2^f d - mean(2^f d),  E = epsilon n 4^f / s^2
    else      u = d,                    E = epsilon n / s^2

    (x - mean) / sqrt(variance + epsilon) = u sqrt(n) / sqrt(S + E)   with S = sum u^2

so that output = u * inverse * gain[c] + offset[c], in steps of 2^-fraction, where

    root = isqrt(S 4^t + E 4^t),  inverse = 2^K // root
    gain = scale sqrt(n) 2^(t - K) / s' * 2^fraction,  offset = bias / s' * 2^fraction

|u| <= sqrt(S), so |u * inverse| <= 2^(K - t + 1): `gain` gets the bits that 2^53 leaves. Everything
is then exact in int64, and in float64 as well. For 8-bit codes gains are even and offsets odd, so
that no sum is a tie; of 16-bit ones offsets are whole codes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ptq.errors import UnsupportedModelError
from ptq.integer.arithmetic import Requantizer
from ptq.integer.compounds import Norm
from ptq.integer.lowering import Lowering
from ptq.integer.program import Certificate, Normalize
from ptq.integer.units import Unit
from ptq.plan import ActivationPlan

EXACT_BITS = 52
SQUARES_BITS = 41  # of S, where f is free: the gain then keeps 14
INVERSE_BITS = 41  # root < 2^26, so an inverse has at least 15 bits
GAIN_BITS = 20
ZERO_POINT_BITS = 50  # a zero point joins the offset


def lower_norm(state: Lowering, unit: Unit) -> None:
    """A norm over rows, by one integer square root and one division a row."""
    norm = unit.compound
    if not isinstance(norm, Norm):
        raise UnsupportedModelError(f"{unit.name}: not a norm over the last axis")
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    n = len(norm.scale)
    mean_bits = _mean_bits(x, n) if norm.centred else 0
    largest, tiny = _spread(norm, x, n, mean_bits)
    shift = (EXACT_BITS - (largest + math.ceil(tiny)).bit_length()) // 2
    epsilon = max(round(tiny * 4**shift), 1)  # roots are 1 or more
    gain, offset, fraction = _affine(norm, y, shift, n)
    one = np.array(1, np.int64)
    requantizer = Requantizer(one, np.array(fraction, np.int64), y.zero_point, y.low, y.high)
    state.steps.append(
        Normalize(
            unit.name, unit.inputs[0], unit.output, norm.centred, mean_bits, epsilon, shift,
            INVERSE_BITS, gain, offset, requantizer, norm.epsilon,
        )
    )  # fmt: skip
    note = "sums in 64 bits, below 2^53"
    state.certificates.append(Certificate(unit.name, x.high * n, True, True, note, 64))


def _mean_bits(x: ActivationPlan, n: int) -> int:
    """As many as a sum of squares has room for."""
    squares = n * (x.high - x.low) ** 2 // 4
    return max(0, SQUARES_BITS - squares.bit_length()) // 2 if x.dtype is np.uint8 else 0


def _spread(norm: Norm, x: ActivationPlan, n: int, mean_bits: int) -> tuple[int, float]:
    """The largest S, and E. No variance is above a quarter of the range's square."""
    reach = max(x.high - x.zero_point, x.zero_point - x.low)
    range_ = (x.high - x.low) << mean_bits
    largest = n * (range_**2 // 4 + 1 if norm.centred else reach**2)
    room = 2**EXACT_BITS - 1 - largest
    return largest, min(norm.epsilon * n * 4**mean_bits / float(x.scale) ** 2, room - 1)


def _affine(
    norm: Norm, y: ActivationPlan, shift: int, n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """gain, offset and fraction: as many bits as stay exact."""
    step = float(y.scale)
    gain = norm.scale * math.sqrt(n) * 2.0 ** (shift - INVERSE_BITS) / step
    bits = min(GAIN_BITS, EXACT_BITS - 1 - (INVERSE_BITS - shift + 1))
    rooms = [
        (2.0**bits - 1, np.abs(gain).max()),
        (2.0 ** (EXACT_BITS - 1), np.abs(norm.bias).max() / step),
    ]
    fits = [math.floor(math.log2(room / most)) for room, most in rooms if most > 0]
    fraction = max(min([ZERO_POINT_BITS - y.high.bit_length(), *fits]), 0)
    gains, offsets = gain * 2.0**fraction, norm.bias / step * 2.0**fraction
    if y.dtype is np.uint8:
        even, odd = 2 * np.rint(gains / 2), 2 * np.floor(offsets / 2) + 1
        return even.astype(np.int64), odd.astype(np.int64), fraction
    whole = np.rint(norm.bias / step).astype(np.int64) << fraction
    return np.rint(gains).astype(np.int64), whole, fraction
