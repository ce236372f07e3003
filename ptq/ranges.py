"""Choosing the range of an affine grid from a histogram: minmax, percentile, entropy, mse.

A range is (low, high) with low <= 0 <= high, so that zero has an exact code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ptq.errors import RecipeError
from ptq.histogram import Histogram

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]

DEFAULT_PERCENTILE = 99.99
_NEIGHBOURS = np.asarray([-1, 0, 1, 2])  # even zero points tried about the ideal one
METHODS = ("minmax", "percentile", "entropy", "mse")


@dataclass(frozen=True)
class Levels:
    """An affine grid of 2^bits codes, or of 2^bits - 1 around zero if it is symmetric."""

    bits: int
    symmetric: bool

    @property
    def count(self) -> int:
        """Number of levels."""
        return (1 << self.bits) - int(self.symmetric)

    def steps(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Scale and zero point of the finest grid that covers each range: [K], [K] -> [K], [K].

        Zero points are even, as those of `ptq.plan.ActivationPlan` have to be.
        """
        top = self.count - 1
        if self.symmetric:
            return _at_least_tiny(2 * high / top), np.full_like(high, top / 2)
        wanted = top * -low / _at_least_tiny(high - low)
        zeros = 2 * np.clip(np.floor(wanted / 2) + _NEIGHBOURS[:, None], 0, top // 2)
        scales = np.maximum(_ratio(high, top - zeros), _ratio(-low, zeros))
        best = np.argmin(scales, axis=0)[None]
        scale = np.take_along_axis(scales, best, axis=0)[0]
        return _at_least_tiny(scale), np.take_along_axis(zeros, best, axis=0)[0]

    def values(self, low: Floats, high: Floats) -> Floats:
        """What the codes stand for in each range: [K], [K] -> [K, count]."""
        scale, zero = self.steps(low, high)
        return (np.arange(self.count) - zero[:, None]) * scale[:, None]


def _ratio(span: Floats, codes: Floats) -> Floats:
    """Span / codes; 0 for no span, infinite for no codes: [K], [4, K] -> [4, K]."""
    none = np.where(span > 0, np.inf, 0.0)
    return np.where((codes > 0) & (span > 0), span / np.maximum(codes, 1), none)


def _at_least_tiny(x: Floats) -> Floats:
    return np.maximum(x, np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Density:
    """A histogram as a piecewise uniform density with its running moments.

    edges: [n + 1]; weights: [n], the share of each bin; zeros are left out but count in the total.
    moments: [3, n + 1], integrals of 1, x and x^2 from the left up to each edge.
    """

    edges: Floats
    weights: Floats
    moments: Floats

    @staticmethod
    def of(histogram: Histogram, clamp: Range) -> Density:
        """The density of the non-zero values, those beyond `clamp` lying on its ends."""
        edges, counts = histogram.support()
        edges = np.clip(edges, *clamp)
        weights = counts / max(1, histogram.total)
        left, right = edges[:-1], edges[1:]
        means = np.stack(
            [np.ones_like(left), (left + right) / 2, (left**2 + left * right + right**2) / 3]
        )
        moments = np.zeros((3, len(edges)))
        np.cumsum(weights * means, axis=1, out=moments[:, 1:])
        return Density(edges, weights, moments)

    def up_to(self, x: Floats) -> Floats:
        """Moments of the part left of x: [...] -> [3, ...]."""
        inner = np.clip(x, self.edges[0], self.edges[-1])
        bins = np.searchsorted(self.edges, inner, side="right") - 1
        bins = np.clip(bins, 0, len(self.weights) - 1)
        left, width = self.edges[bins], self.edges[bins + 1] - self.edges[bins]
        part = np.where(width > 0, (inner - left) / np.where(width > 0, width, 1.0), x >= left)
        half = width * part / 2
        mean = left + half
        below = self.weights[bins] * part
        moments = self.moments[:, bins] + below * np.stack(
            [np.ones_like(mean), mean, mean**2 + half**2 / 3]
        )
        return np.where(x < self.edges[0], 0.0, moments)

    def within(self, q: Floats) -> Floats:
        """Moments of what rounds to each level, the outer ones reaching on.

        q: [..., n], ascending along the last axis -> [3, ..., n].
        """
        edges = np.zeros((3, *q.shape[:-1], q.shape[-1] + 1))
        edges[..., 1:-1] = self.up_to((q[..., :-1] + q[..., 1:]) / 2)
        edges[..., -1] = self.moments[:, -1].reshape(3, *[1] * (q.ndim - 1))
        return np.diff(edges, axis=-1)

    def error(self, q: Floats) -> Floats:
        """Mean squared error of rounding to the levels, clipping and all: [..., n] -> [...].

        sum over cells of E[(x - q)^2] = M2 - 2 q M1 + q^2 M0, M the moments of the cell that the
        level q serves; the outer cells reach to infinity, which is the clipping.
        """
        m0, m1, m2 = self.within(q)
        error: Floats = np.maximum((m2 - 2 * q * m1 + q * q * m0).sum(axis=-1), 0.0)
        return error


class Valued(Protocol):
    """Levels that a range places: equally spaced ones, or others (`ptq.levels`)."""

    @property
    def symmetric(self) -> bool:
        """True if both ends of a range move together."""
        ...

    def values(self, low: Floats, high: Floats) -> Floats:
        """The levels of each range, ascending: [K], [K] -> [K, count]."""
        ...


def squared_error(density: Density, levels: Valued, low: Floats, high: Floats) -> Floats:
    """Mean squared quantisation error of K ranges: [K], [K] -> [K]."""
    return density.error(levels.values(low, high))


def divergence(density: Density, levels: Levels, low: Floats, high: Floats) -> Floats:
    """KL(P || Q) of K ranges: [K], [K] -> [K].

    P: the clipped density, its tails in the outermost bins. Q: the same bins when only one number
    a level is known, spread evenly over the bins that are not empty (TensorRT's calibration).
    """
    scale, _ = levels.steps(low, high)
    centres = (density.edges[:-1] + density.edges[1:]) / 2
    return np.asarray(
        [
            _divergence(density.weights, centres, a, b, s)
            for a, b, s in zip(low, high, scale, strict=True)
        ]
    )


def _divergence(weights: Floats, centres: Floats, low: float, high: float, scale: float) -> float:
    start = int(np.searchsorted(centres, low))
    stop = int(np.searchsorted(centres, high, side="right"))
    inside = weights[start:stop]
    if not inside.any():
        return np.inf
    p = inside.copy()
    p[0] += weights[:start].sum()
    p[-1] += weights[stop:].sum()
    cell = np.rint(centres[start:stop] / scale)
    starts = np.flatnonzero(np.diff(cell, prepend=np.nan) != 0)
    filled = inside > 0
    mean = np.add.reduceat(inside, starts) / np.maximum(
        np.add.reduceat(filled, starts, dtype=np.int64), 1
    )
    q = np.where(filled, np.repeat(mean, np.diff(starts, append=len(cell))), 0.0)
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-12))).sum())


Cost = Callable[[Density, Any, Floats, Floats], Floats]
"""(density, levels of some kind, lows, highs) -> what each range costs."""

_COARSE: Floats = np.power(0.8, np.arange(18))
_REFINE_STEPS = (0.2, 0.08, 0.03, 0.012, 0.005)
_REFINE: Floats = np.asarray([-1.0, -0.5, 0.0, 0.5, 1.0])
_TRIALS: tuple[Floats, ...] = (_COARSE, *(1.0 + step * _REFINE for step in _REFINE_STEPS))


def search_range(histogram: Histogram, levels: Any, cost: Cost, start: Range) -> Range:
    """Coarse to fine over both ends, beginning with `start`, which wins a tie.

    An end that is zero stays zero; a symmetric grid moves both ends together.
    """
    density = Density.of(histogram, start)
    low, high = start
    if not len(density.weights) or low == high:
        return start
    best = np.ones(2)
    best_cost = cost(density, levels, np.asarray([low]), np.asarray([high]))[0]
    for trial in _TRIALS:
        factors = np.minimum(best * _pairs(trial, start, levels.symmetric), 1.0)
        costs = cost(density, levels, low * factors[:, 0], high * factors[:, 1])
        winner = int(np.argmin(costs))
        if costs[winner] < best_cost:
            best, best_cost = factors[winner], costs[winner]
    return float(low * best[0]), float(high * best[1])


def _pairs(trial: Floats, start: Range, symmetric: bool) -> Floats:
    """Factors of (low, high) to try: [K, 2]."""
    if symmetric:
        return np.stack([trial, trial], axis=1)
    sides = [trial if end != 0 else np.ones(1) for end in start]
    low, high = np.meshgrid(*sides, indexing="ij")
    return np.stack([low.ravel(), high.ravel()], axis=1)


def _minmax(histogram: Histogram, levels: Levels, start: Range, argument: float) -> Range:
    return start


def _percentile(histogram: Histogram, levels: Levels, start: Range, argument: float) -> Range:
    """Cut (100 - argument) % of all values, zeros included, off each end."""
    edges, counts = histogram.support()
    if not len(counts):
        return start
    tail = (1.0 - argument / 100.0) * histogram.total
    upto = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    beyond = upto[-1] - upto
    low = float(np.interp(tail, upto, edges)) if tail < upto[-1] else 0.0
    high = float(np.interp(tail, beyond[::-1], edges[::-1])) if tail < beyond[0] else 0.0
    return max(start[0], min(low, 0.0)), min(start[1], max(high, 0.0))


def _entropy(histogram: Histogram, levels: Levels, start: Range, argument: float) -> Range:
    """As few bins as levels describe anything exactly, so narrower ranges are not looked at."""
    width = histogram.width

    def cost(density: Density, levels: Levels, low: Floats, high: Floats) -> Floats:
        costs = divergence(density, levels, low, high)
        return np.where(high - low >= levels.count * width, costs, np.inf)

    return search_range(histogram, levels, cost, start)


def _mse(histogram: Histogram, levels: Levels, start: Range, argument: float) -> Range:
    return search_range(histogram, levels, squared_error, start)


Method = Callable[[Histogram, Levels, Range, float], Range]
_METHODS: Mapping[str, Method] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def choose_range(
    histogram: Histogram,
    method: str,
    bits: int,
    symmetric: bool = False,
    limits: Range | None = None,
) -> Range:
    """The range (low, high), low <= 0 <= high, that `method` gives to an affine grid.

    method: minmax, percentile (99.99 % from each end) or percentile:99.9, entropy, mse.
    bits: 2 to 8; symmetric: high = -low and 2^bits - 1 levels.
    limits: what the values can be at all, for example (0, 6) behind a ReLU6.
    A tensor that was always zero gives (0, 0).

    Raises:
        RecipeError: an unknown method, or a percentile outside 50 .. 100.
    """
    name, _, text = method.partition(":")
    if name not in _METHODS or (text and name != "percentile"):
        raise RecipeError(f"calibration method: got {method!r}; wanted {', '.join(METHODS)}")
    low, high = min(histogram.min, 0.0), max(histogram.max, 0.0)
    if limits is not None:
        low, high = max(low, min(limits[0], 0.0)), min(high, max(limits[1], 0.0))
    if symmetric:
        low, high = min(low, -high), max(high, -low)
    chosen = _METHODS[name](histogram, Levels(bits, symmetric), (low, high), _percent(text))
    if symmetric:
        reach = max(-chosen[0], chosen[1])
        return -reach, reach
    return chosen


def _percent(text: str) -> float:
    try:
        value = float(text or DEFAULT_PERCENTILE)
    except ValueError:
        value = np.nan
    if not 50.0 < value <= 100.0:
        raise RecipeError(f"calibration method: got percentile {text!r}; wanted 50 to 100")
    return value
