"""Levels of activations that are not equally spaced.

A power grid is denser near zero, as the values are; a codebook has each level at the mean of what
rounds to it. Either runs as 8-bit codes that a table of 256 entries takes to the nearest level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ptq.histogram import Histogram
from ptq.ranges import Density, Levels, Range, Valued, choose_range, search_range, squared_error

Floats = npt.NDArray[np.float64]

POWERS = (1.15, 1.3, 1.5, 1.75, 2.0)
ROUNDS = 60
"""Of moving levels to means; 30 are within .1 dB of what 100 reach."""
SEEN = 1e-12
"""Share of all values below which a level has none: running sums are as exact as that."""


@dataclass(frozen=True)
class PowerLevels:
    """|k|^power on either side of zero (NUPES-style, arXiv 2308.05600).

    negatives: how many of the 2^bits levels are below zero. The sides end where the range does, so
    each has a scale of its own.
    """

    bits: int
    power: float
    negatives: int
    symmetric: bool = False

    def values(self, low: Floats, high: Floats) -> Floats:
        """The levels of each range, ascending: [K], [K] -> [K, 2^bits]."""
        k = np.arange(1 << self.bits) - self.negatives
        furthest = np.where(k < 0, -k[0], k[-1])
        share: Floats = (np.abs(k) / np.maximum(furthest, 1)) ** self.power
        values: Floats = share * np.where(k < 0, low[:, None], high[:, None])
        return values


@dataclass(frozen=True)
class Chosen:
    """Levels: [n] ascending, zero among them; their mean squared error; power: 1 if not of one."""

    values: Floats
    error: float
    power: float = 1.0


def power_levels(histogram: Histogram, method: str, bits: int, limits: Range) -> Chosen:
    """The best of equally spaced levels and of those of POWERS, ranges and all.

    'mse' searches each candidate's range, other methods fix it. Arguments as of `choose_range`.
    """
    start = choose_range(histogram, "minmax" if method == "mse" else method, bits, limits=limits)
    density = Density.of(histogram, start)

    def fit(levels: Valued, power: float = 1.0) -> Chosen:
        found = start
        if method == "mse":
            found = search_range(histogram, levels, squared_error, start)
        low, high = (np.asarray([end]) for end in found)
        error = squared_error(density, levels, low, high)
        return Chosen(levels.values(low, high)[0], float(error[0]), power)

    candidates = [fit(Levels(bits, symmetric=False))]
    for power in POWERS:
        for negatives in _negatives(start, bits, power):
            candidates.append(fit(PowerLevels(bits, power, negatives), power))
    return min(candidates, key=lambda chosen: chosen.error)


def codebook(histogram: Histogram, method: str, bits: int, limits: Range) -> Chosen:
    """The means of what rounds to each level (Lloyd-Max), from the best power levels on.

    Zero stays a level, and the ends stay unless the method is 'mse'.
    """
    start = power_levels(histogram, method, bits, limits)
    ends = start.values[[0, -1]]
    if method == "mse":
        ends = np.clip([histogram.min, histogram.max], *limits)
    low, high = min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    density = Density.of(histogram, (low, high))
    values = np.clip(start.values, low, high)
    fixed = (values == 0) | (np.isin(values, ends) & (method != "mse"))
    for _ in range(ROUNDS):
        share, total, _ = density.within(values)
        moves = ~fixed & (share > SEEN)
        values = np.sort(np.where(moves, total / np.where(moves, share, 1.0), values))
    return replace(start, values=values, error=float(density.error(values)))


def _negatives(start: Range, bits: int, power: float) -> Iterable[int]:
    """How many levels below zero to try: about as many as make both sides' scales equal."""
    low, high = (abs(end) ** (1 / power) for end in start)
    top = (1 << bits) - 1
    if not low or not high:
        return [0 if high else top]
    middle = round(top * low / (low + high))
    return range(max(middle - 2, 1), min(middle + 2, top - 1) + 1)


FAMILIES: Mapping[str, Callable[[Histogram, str, int, Range], Chosen]] = {
    "power": power_levels,
    "codebook": codebook,
}
