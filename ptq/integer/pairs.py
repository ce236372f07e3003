"""Pairs of weights that CPUs without VNNI add in 16 bits, and how to keep them from saturating.

Such a CPU multiplies unsigned codes with signed weights by one instruction (vpmaddubsw) that adds
neighbouring products and saturates at 16 bits. Two weights that meet must therefore satisfy

    -2^15 <= top * (w_i + w_j) < 2^15        top: the largest code of the input, 255 for 8 bits

where both have the same sign; other pairs are nearer to zero than their larger weight. Neighbours
are the elements 2i and 2i + 1 in the order that a kernel reads a row: channels first, as the model
has it, or channels last, as onnxruntime does when it moves the channels of images.
A convolution of one channel a group has its own kernel, which widens first and cannot saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.program import Convolve, Gemm

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a row of weights and the largest sum that cannot saturate.

    orders: for every order that kernels read a row in, the first and the second elements of its
    pairs, [K // 2] each. limit: of the sum's magnitude.
    """

    orders: tuple[tuple[Index, Index], ...]
    limit: int

    @staticmethod
    def of(shape: Sequence[int], top: int) -> Pairs:
        """Pairs of rows of this shape, [in / groups, *kernel] or [k]; top: largest input code."""
        elements = np.arange(int(np.prod(shape))).reshape(shape)
        orders = [elements.reshape(-1)]
        if elements.ndim > 1:
            orders.append(np.moveaxis(elements, 0, -1).reshape(-1))
        half = 2 * (elements.size // 2)
        pairs = tuple((order[0:half:2], order[1:half:2]) for order in orders)
        return Pairs(pairs, (2**15 - 1) // max(top, 1))

    def safe(self, rows: Array) -> bool:
        """True if no pair of [channels, K] integers can saturate."""
        wide = np.asarray(rows, np.int64)
        sums = [np.abs(wide[:, a] + wide[:, b]).max(initial=0) for a, b in self.orders]
        return bool(max(sums, default=0) <= self.limit)

    def cap(self, rows: Array) -> Array:
        """Rows whose pairs are safe: [channels, K] integral, a copy of the same type.

        What a pair has too much is taken from its larger weight until both are equal, then from
        both. No weight changes its sign, so pairs in the other order only become safer.
        """
        capped = np.array(rows)
        for a, b in self.orders:
            first, second = capped[:, a], capped[:, b]
            excess = np.abs(first + second) - self.limit
            row, pair = np.nonzero(excess > 0)
            if len(row):
                lowered = _lower(first[row, pair], second[row, pair], excess[row, pair])
                capped[row, a[pair]], capped[row, b[pair]] = lowered
        return capped


def convolution_pairs(shape: Sequence[int], groups: int, top: int) -> Pairs | None:
    """Pairs of a weight [out, in / groups, *kernel], or None where no kernel adds in 16 bits."""
    alone = shape[1] == 1 and groups == shape[0]
    return None if alone else Pairs.of(shape[1:], top)


def saturates(step: Convolve | Gemm, top: int) -> bool:
    """True if the step's int8 weight is not the same product on every CPU; top: as for Pairs."""
    if isinstance(step, Gemm):
        return not Pairs.of(step.weight.shape[:1], top).safe(step.weight.T)
    pairs = convolution_pairs(step.weight.shape, step.groups, top)
    return pairs is not None and not pairs.safe(step.weight.reshape(len(step.weight), -1))


def _lower(first: Array, second: Array, excess: Array) -> tuple[Array, Array]:
    """Two weights of one sign whose sum's magnitude is smaller by `excess`."""
    sign = np.sign(first + second)
    x, y = first * sign, second * sign
    uneven = np.minimum(excess, np.abs(x - y))
    rest = excess - uneven
    more = (rest + 1) // 2
    less = rest - more
    larger = x >= y
    x = x - np.where(larger, uneven + more, less)
    y = y - np.where(larger, less, uneven + more)
    return x * sign, y * sign
