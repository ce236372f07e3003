"""A streaming histogram of one tensor: fixed memory, exact extremes, exact zeros.

Bins are `2^exponent` wide and start at multiples of that width. When a value falls outside, pairs
of bins are merged until the new range fits, so no earlier count is ever moved across a bin edge
and nothing but the counts is stored. Exact zeros (ReLU makes many) are counted apart: every
quantisation grid has an exact zero, so they cost nothing and must not look like a density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import CalibrationError

Counts = npt.NDArray[np.int64]
Edges = npt.NDArray[np.float64]

BINS = 2048
MASK_MAGNITUDE = 1e30
"""Values beyond this are the -inf of an attention mask, not data: counted, but in no bin."""

_SMALLEST_EXPONENT = -120  # of a bin's width; its inverse must stay finite in float32


def _no_counts() -> Counts:
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of float values.

    Attributes:
        counts: [BINS] int64, of the non-zero values.
        first: index of the first bin; bin i covers [first + i, first + i + 1) * 2^exponent.
        zeros, masked: number of exact zeros, and of values beyond +-1e30 or infinite.
        min, max: exact extremes of the unmasked values (inf, -inf while there are none).
    """

    counts: Counts = field(default_factory=_no_counts)
    first: int = 0
    exponent: int = _SMALLEST_EXPONENT
    zeros: int = 0
    masked: int = 0
    min: float = math.inf
    max: float = -math.inf

    @property
    def total(self) -> int:
        """Number of values seen, without the masked ones."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def nbytes(self) -> int:
        """Memory of the counts; it never changes."""
        return self.counts.nbytes

    def update(self, x: npt.NDArray[Any]) -> None:
        """Count the values of `x` (any shape; read as float32).

        Raises:
            CalibrationError: a NaN.
        """
        flat = np.asarray(x, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if math.isnan(low) or math.isnan(high):
            raise CalibrationError("got NaN, wanted numbers")
        if low < -MASK_MAGNITUDE or high > MASK_MAGNITUDE:
            kept = flat[np.abs(flat) <= MASK_MAGNITUDE]
            self.masked += flat.size - kept.size
            self.update(kept)
            return
        zeros = flat.size - int(np.count_nonzero(flat))
        self.zeros += zeros
        self._cover(low, high)
        if zeros < flat.size:
            self._count(flat, zeros)

    def _count(self, flat: npt.NDArray[np.float32], zeros: int) -> None:
        position = flat * np.float32(math.ldexp(1.0, -self.exponent))
        position -= np.float32(self.first)
        # rounding may lift a value just below the last edge onto it
        counts = np.bincount(position.astype(np.intp), minlength=BINS + 1)
        counts[BINS - 1] += counts[BINS]
        counts[-self.first] -= zeros
        self.counts += counts[:BINS]

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`."""
        self.zeros += other.zeros
        self.masked += other.masked
        if other.min > other.max:
            return
        moved = Histogram(other.counts.copy(), other.first, other.exponent)
        moved.min, moved.max = other.min, other.max
        self._cover(other.min, other.max)
        moved._cover(self.min, self.max)
        while moved.exponent < self.exponent:
            moved._halve()
        while self.exponent < moved.exponent:
            self._halve()
        low = min(self.first, moved.first)
        low = max(low, self._index(self.max) - BINS + 1)
        self._slide(low)
        moved._slide(low)
        self.counts += moved.counts

    def _index(self, value: float) -> int:
        return math.floor(math.ldexp(value, -self.exponent))

    def _cover(self, low: float, high: float) -> None:
        """Widen the extremes and make the bins reach from them to zero."""
        self.min, self.max = min(self.min, low), max(self.max, high)
        low, high = min(self.min, 0.0), max(self.max, 0.0)
        if not self.counts.any():
            span = max(high - low, 2.0**-100)
            self.exponent = max(_SMALLEST_EXPONENT, math.frexp(span / BINS)[1] - 1)
            self.first = max(-BINS + 1, min(0, self._index(low)))
        while self._index(high) - self._index(low) >= BINS:
            self._halve()
        first, last = self._index(low), self._index(high)
        if first < self.first:
            self._slide(first)
        elif last >= self.first + BINS:
            self._slide(last - BINS + 1)

    def _halve(self) -> None:
        """Merge pairs of bins, from even indices on: edges stay multiples of the width."""
        odd = self.first % 2
        pairs = np.zeros(BINS + 2, np.int64)
        pairs[odd : odd + BINS] = self.counts
        self.counts = _no_counts()
        self.counts[: BINS // 2 + 1] = pairs.reshape(-1, 2).sum(axis=1)
        self.first //= 2
        self.exponent += 1

    def _slide(self, first: int) -> None:
        """Start the bins at index `first`; only empty bins may fall off."""
        shift = self.first - first
        moved = _no_counts()
        if shift >= 0:
            moved[shift:] = self.counts[: BINS - shift]
        else:
            moved[:shift] = self.counts[-shift:]
        self.counts, self.first = moved, first

    def support(self) -> tuple[Edges, Counts]:
        """Bins from the smallest to the largest non-zero value.

        Returns: edges [n + 1] float64 (the outer ones are the exact extremes where those are not
        zero), counts [n] int64; n is 0 if there was nothing but zeros.
        """
        filled = np.flatnonzero(self.counts)
        if not filled.size:
            return np.zeros(1), np.zeros(0, np.int64)
        start, stop = int(filled[0]), int(filled[-1]) + 1
        edges = (self.first + np.arange(start, stop + 1)) * self.width
        return np.clip(edges, self.min, self.max), self.counts[start:stop]
