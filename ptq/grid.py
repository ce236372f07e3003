"""The grid: which codes exist and what integer each one decodes to.

One family serves every precision (NUPES-style, arXiv 2308.05600, with a zero point):

    k = c - z + h        c: code in 0 .. 2^bits - 1, z: integer zero point, h: 0 or 1/2
    L_k = sign(k) |k|^p  p: the power, 1 for a uniform grid
    value = scale * T_c  T: the int8 decode table

With p = 1 and h = 0 the table is k itself and this is exactly the affine uniform grid. Otherwise
the table is L rescaled to int8. *The table is the grid*: everything simulates with the rounded
table, so simulation and integer execution are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import RecipeError

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]

WEIGHT_BITS = range(2, 9)
WIDE_BITS = 16
"""Of activations that are only added and normalised."""
LARGEST = 127


def container(high: int) -> Any:
    """The unsigned type that holds codes up to `high`."""
    return np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16


@dataclass(frozen=True)
class Grid:
    """A set of codes and the shape of their levels; scale and zero point live beside it.

    bits: width of a code, 2 to 8.
    power: exponent p >= 1 of the levels; 1 is uniform.
    half: levels at half-integer positions (no exact zero), for weights of at most 7 bits.
    symmetric: the zero point is fixed at mid-range instead of being searched.
    end: largest magnitude in a table of power levels; 64 keeps the sum of two weights within 128,
        which no CPU's u8 x s8 arithmetic saturates on.
    """

    bits: int = 8
    power: float = 1.0
    half: bool = False
    symmetric: bool = False
    end: int = LARGEST

    def __post_init__(self) -> None:
        if self.bits not in (*WEIGHT_BITS, WIDE_BITS):
            raise RecipeError(f"grid: got {self.bits} bits; wanted 2 to 8: choose a width in it")
        if not self.power >= 1.0:
            raise RecipeError(f"grid: got power {self.power}; wanted at least 1 (p = 1/a)")
        if not 1 <= self.end <= LARGEST:
            raise RecipeError(f"grid: got a table that ends at {self.end}; wanted 1 to {LARGEST}")
        if self.half and self.bits == 8:
            raise RecipeError("grid: half-integer levels of 8 bits do not fit int8: use 7 or fewer")

    @property
    def size(self) -> int:
        """Number of codes, 2^bits."""
        return 1 << self.bits

    @property
    def uniform(self) -> bool:
        """True if the levels are equally spaced."""
        return self.power == 1.0

    @property
    def middle(self) -> int:
        """The zero point of the symmetric grid, 2^(bits - 1)."""
        return self.size // 2

    def table(self, zero_point: int) -> npt.NDArray[np.int8]:
        """Decode table T: [2^bits] int8, strictly increasing.

        Raises:
            RecipeError: the levels do not stay distinct, or do not fit, in int8.
        """
        position = np.arange(self.size) - zero_point + (0.5 if self.half else 0.0)
        if self.uniform:
            levels = position * (2 if self.half else 1)
        else:
            levels = np.sign(position) * np.abs(position) ** self.power
            levels = np.rint(self.end * levels / np.abs(levels).max())
        if levels.min() < -128 or levels.max() > 127 or (np.diff(levels) < 1).any():
            raise RecipeError(
                f"grid: {self} with zero point {zero_point} has no int8 table of distinct levels: "
                "use fewer bits or a power nearer to 1"
            )
        return levels.astype(np.int8)

    def tables(self, zero_points: Integers) -> npt.NDArray[np.int8]:
        """Decode tables of many zero points: [n] integers -> [n, 2^bits] int8."""
        known = {int(z): self.table(int(z)) for z in np.unique(zero_points)}
        return np.stack([known[int(z)] for z in zero_points])

    def quantize(self, w: Floats, scale: Floats, zero_points: Integers) -> Codes:
        """Codes of the nearest levels.

        w: [n, ...] float, scale: [n] float > 0, zero_points: [n] integers -> [n, ...] uint8.
        """
        rows = w.reshape(len(w), -1) / np.asarray(scale, np.float64)[:, None]
        if self.uniform and not self.half:
            codes = np.rint(rows) + np.asarray(zero_points)[:, None]
            return np.clip(codes, 0, self.size - 1).astype(np.uint8).reshape(w.shape)
        tables = self.tables(zero_points).astype(np.float64)
        middles = (tables[:, 1:] + tables[:, :-1]) / 2
        found = [np.searchsorted(m, row) for m, row in zip(middles, rows, strict=True)]
        return np.asarray(found, np.uint8).reshape(w.shape)

    def decode(self, codes: Codes, zero_points: Integers) -> npt.NDArray[np.int8]:
        """Integers of the codes: [n, ...] uint8, [n] integers -> [n, ...] int8."""
        rows = codes.reshape(len(codes), -1)
        decoded = np.take_along_axis(self.tables(zero_points), rows.astype(np.intp), axis=1)
        return decoded.reshape(codes.shape)

    def dequantize(self, codes: Codes, scale: Floats, zero_points: Integers) -> Floats:
        """Values of the codes: scale * T_c, [n, ...] float64."""
        shape = (-1, *[1] * (codes.ndim - 1))
        return self.decode(codes, zero_points) * np.asarray(scale, np.float64).reshape(shape)
