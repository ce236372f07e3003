"""Scales for which onnxruntime's fused multiplier is exactly the program's.

onnxruntime turns DequantizeLinear, operator, QuantizeLinear into one integer operator and computes
its multiplier from the three scales in float32:

    ratio = other * scale / (y_scale * count)

The scales around one operator may be chosen freely within rounding: `scale` follows from the
wanted ratio, and where no float32 gives it, a neighbouring y_scale does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.integer.arithmetic import scales_for_ratio

ONE = np.float32(1)
NEIGHBOURS = 64  # tried each way, in growing steps: at most 5 parts in 10,000 away


@dataclass(frozen=True)
class Operand:
    """One operand's share: the ratio it needs, [] or [channels] float32, exact.

    other: the scale it is multiplied with; count: what y_scale is multiplied with.
    """

    ratio: npt.NDArray[np.float32]
    other: np.float32 = ONE
    count: int = 1


def fused_scales(
    operands: Sequence[Operand], y_scale: np.float32
) -> tuple[list[npt.NDArray[np.float32]], np.float32]:
    """A scale for each operand, and y_scale or the neighbour of it that makes them all exact.

    Where there is none, the scales whose ratios are nearest.
    """
    for candidate in _neighbours(y_scale):
        found = [_scales(operand, candidate) for operand in operands]
        if all(exact.all() for _, exact in found):
            return [scale for scale, _ in found], candidate
    return [_scales(operand, y_scale)[0] for operand in operands], y_scale


def _scales(
    operand: Operand, y_scale: np.float32
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    divisor = np.float32(y_scale * np.float32(operand.count))
    return scales_for_ratio(operand.ratio, operand.other, divisor)


def _neighbours(scale: np.float32) -> Iterator[np.float32]:
    """`scale` and floats around it, outwards: 1, 4, 9, ... float32 steps away.

    In equal steps the remainders of a product may take very long to come round.
    """
    yield scale
    step = np.spacing(scale)
    for i in range(1, NEIGHBOURS + 1):
        yield np.float32(scale + np.float32(i * i) * step)
        yield np.float32(scale - np.float32(i * i) * step)
