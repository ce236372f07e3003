"""Rounding within what pairs of weights may sum to (`ptq.integer.pairs`).

Of a pair that must not saturate, -limit <= w_i + w_j <= limit, the weight that is rounded second
takes the levels that the first one leaves it, so that error feedback can make up for what it lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Integers
from ptq.integer.pairs import Pairs

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PairRoom:
    """Bounds of the codes of one column, given those of its partners; uniform grids.

    partners: [orders, K], the column that each one is paired with; -1 where it is alone.
    limit: of a sum's magnitude. zero_point: [groups, n] float64.
    """

    partners: Index
    limit: int
    zero_point: Array

    @staticmethod
    def of(pairs: Pairs, zero_point: Integers, shape: tuple[int, ...]) -> PairRoom:
        """The room of a weight of this shape, [groups, n, K]; zero_point: [groups * n]."""
        partners = np.full((len(pairs.orders), shape[-1]), -1)
        for own, (first, second) in zip(partners, pairs.orders, strict=True):
            own[first], own[second] = second, first
        return PairRoom(partners, pairs.limit, zero_point.reshape(shape[:2]).astype(np.float64))

    def clamp(self, code: Array, column: Index, codes: Codes) -> Array:
        """The nearest codes that the partners leave room for: [groups, n] float64.

        column: [groups], which one of each group; codes: [groups, n, K + 1], see `with_alone`.
        """
        each = np.arange(len(codes))
        for partners in self.partners:
            middle = 2.0 * self.zero_point - codes[each, :, partners[column]]
            code = np.minimum(np.maximum(code, middle - self.limit), middle + self.limit)
        return code


def with_alone(codes: Codes, zero_point: Integers) -> Codes:
    """Codes [groups, n, K] with one more column, a weight of zero: the partner of those alone."""
    nothing = zero_point.reshape(*codes.shape[:2], 1).astype(np.uint8)
    return np.concatenate([codes, nothing], axis=2)
