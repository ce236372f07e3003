"""Tables that onnxruntime builds itself, faster to look up than by GatherElements.

QLinearLeakyRelu (requantisation, Relu, LeakyRelu) builds its 256 entries from scales and a slope,
in float32 and without transcendental functions, so they can be told beforehand bit for bit.
QLinearSigmoid computes exponentials as it likes; but where no value is near a rounding tie, every
routine with six good digits gives the same table.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ptq.plan import ActivationPlan

TIE_MARGIN = 1e-3  # in codes, 4e-6 of a sigmoid with 256 codes; float32 routines err by 1e-7


def leaky_table(x: ActivationPlan, y: ActivationPlan, alpha: np.float32) -> npt.NDArray[np.uint8]:
    """What QLinearLeakyRelu maps the codes 0 .. 255 to, then clipped to y's codes: [256] uint8."""
    values = x.dequantize(np.arange(256, dtype=np.uint8))
    return replace(y, levels=()).quantize(np.where(values >= 0, values, values * alpha))


def is_sigmoid(table: npt.NDArray[np.uint8], x: ActivationPlan, y: ActivationPlan) -> bool:
    """True if the table, on x's codes, is that of QLinearSigmoid whatever its exponentials do."""
    used = np.arange(x.low, x.high + 1)
    inputs = (used - x.zero_point) * float(x.scale)
    codes = (1 + np.tanh(inputs / 2)) / (2 * float(y.scale)) + y.zero_point
    inside = (codes > y.low) & (codes < y.high)
    if (np.abs(codes - np.floor(codes) - 0.5)[inside] < TIE_MARGIN).any():
        return False
    return np.array_equal(np.clip(np.rint(codes), y.low, y.high), table[used])


def leaky_slope(
    table: npt.NDArray[np.uint8], x: ActivationPlan, y: ActivationPlan
) -> np.float32 | None:
    """The alpha for which `leaky_table` equals `table` on x's codes, or None.

    Every negative input bounds alpha on both sides; the middle of what remains is tried.
    """
    used = np.arange(x.low, x.high + 1)
    inputs = x.dequantize(used.astype(np.uint8)).astype(np.float64)
    targets = table[used].astype(np.float64)
    negative = inputs < 0
    targets, inputs = targets[negative] - y.zero_point, inputs[negative]
    high = np.where(targets > y.low - y.zero_point, targets - 0.5, -np.inf) * y.scale / inputs
    low = np.where(targets < y.high - y.zero_point, targets + 0.5, np.inf) * y.scale / inputs
    least, most = low.max(initial=-1e6), high.min(initial=1e6)
    alpha = np.float32((least + most) / 2)
    found = leaky_table(x, y, alpha)[used]
    return alpha if np.array_equal(found, table[used]) else None
