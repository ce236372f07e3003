"""ptq.ranges: every method keeps zero inside; mse is the best in its own objective."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.errors import RecipeError
from ptq.histogram import Histogram
from ptq.ranges import METHODS, Density, Levels, choose_range, squared_error

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from(["normal", "relu", "negative", "heavy", "constant", "few", "offset"])


def values(shape: str, seed: int, size: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size)
    made = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "negative": -np.abs(x) - 0.1,
        "heavy": x**5,
        "constant": np.full(size, x[0]),
        "few": x[:2],
        "offset": x * 0.1 + 10,
    }
    return (made[shape] * 2.0 ** rng.integers(-20, 20)).astype(np.float32)


def histogram_of(x: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(x, 3):
        histogram.update(part)
    return histogram


def quantised(x: np.ndarray, low: float, high: float, levels: Levels) -> np.ndarray:
    scale, zero = levels.steps(np.asarray([low]), np.asarray([high]))
    codes = np.clip(np.rint(x / scale) + zero, 0, levels.count - 1)
    return (codes - zero) * scale


@given(SHAPES, SEEDS, st.sampled_from(METHODS), st.integers(2, 8), st.booleans())
def test_range_contains_zero_and_stays_within_the_extremes(
    shape: str, seed: int, method: str, bits: int, symmetric: bool
) -> None:
    x = values(shape, seed)
    low, high = choose_range(histogram_of(x), method, bits, symmetric)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    assert low < high
    reach = np.abs(x).max()
    assert -reach <= low
    assert high <= reach
    assert not symmetric or low == -high


@given(SHAPES, SEEDS, st.integers(2, 8), st.booleans())
def test_mse_is_never_worse_than_minmax_in_its_own_objective(
    shape: str, seed: int, bits: int, symmetric: bool
) -> None:
    histogram = histogram_of(values(shape, seed))
    levels = Levels(bits, symmetric)
    ranges = [choose_range(histogram, name, bits, symmetric) for name in ("mse", "minmax")]
    density = Density.of(histogram, ranges[1])
    mse, minmax = squared_error(density, levels, *np.asarray(ranges).T)
    assert mse <= minmax * (1 + 1e-9)


# heavy: most values lie in the two middle bins, which are taken as uniform
@pytest.mark.parametrize(
    ("shape", "bits", "tolerance"),
    [(shape, bits, 0.02) for shape in ("normal", "relu") for bits in (2, 4, 8)]
    + [("heavy", 2, 0.02), ("heavy", 4, 0.05), ("heavy", 8, 0.25)],
)
def test_squared_error_is_that_of_the_values(shape: str, bits: int, tolerance: float) -> None:
    x = values(shape, 3, 200_000)
    density = Density.of(histogram_of(x), (float(x.min()), float(x.max())))
    levels = Levels(bits, False)
    for shrink in (1.0, 0.5, 0.2):
        low, high = min(float(x.min()), 0) * shrink, float(x.max()) * shrink
        measured = np.mean((x.astype(np.float64) - quantised(x, low, high, levels)) ** 2)
        estimated = squared_error(density, levels, np.asarray([low]), np.asarray([high]))[0]
        assert estimated == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_range_is_near_the_best_of_a_brute_force_search(bits: int) -> None:
    x = values("normal", 5, 50_000)
    levels = Levels(bits, False)

    def error(low: float, high: float) -> float:
        return float(np.mean((x - quantised(x, low, high, levels)) ** 2))

    steps = np.linspace(0.1, 1.0, 25)
    best = min(error(x.min() * a, x.max() * b) for a in steps for b in steps)
    assert error(*choose_range(histogram_of(x), "mse", bits)) <= best * 1.02


def test_mse_of_a_gaussian_at_4_bits_clips_near_the_known_optimum() -> None:
    """The optimal uniform 16-level quantiser of N(0, 1) has step 0.335 (Max 1960, Table II)."""
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    low, high = choose_range(histogram_of(x), "mse", 4)
    step, _ = Levels(4, False).steps(np.asarray([low]), np.asarray([high]))
    assert step[0] == pytest.approx(0.335, rel=0.03)


def test_percentile_cuts_the_given_share_off_each_end() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, 100_000).astype(np.float32)
    low, high = choose_range(histogram_of(x), "percentile:99", 8)
    assert (low, high) == pytest.approx((-0.98, 0.98), abs=0.005)


def test_percentile_counts_zeros() -> None:
    """90 % zeros: the largest 1 % of all values is the largest 10 % of the rest."""
    x = np.zeros(100_000, np.float32)
    x[::10] = np.linspace(0, 1, 10_000)
    assert choose_range(histogram_of(x), "percentile:99", 8)[1] == pytest.approx(0.9, abs=0.01)


def test_entropy_clips_a_lone_outlier() -> None:
    x = np.abs(np.random.default_rng(2).standard_normal(100_000)).astype(np.float32)
    x[0] = 20
    low, high = choose_range(histogram_of(x), "entropy", 8)
    assert low == 0
    assert 3 < high < 12


@pytest.mark.parametrize("method", METHODS)
def test_always_zero_gives_an_empty_range(method: str) -> None:
    assert choose_range(histogram_of(np.zeros(9, np.float32)), method, 8) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_limits_bound_the_range(method: str) -> None:
    """The tensor in front of a ReLU6: what lies outside 0..6 is clamped anyway."""
    x = (np.random.default_rng(4).standard_normal(20_000) * 8).astype(np.float32)
    low, high = choose_range(histogram_of(x), method, 8, limits=(0.0, 6.0))
    assert low == 0
    assert 5.9 < high <= 6


def test_limits_count_clamped_values_as_the_limit() -> None:
    """Values 1..100 clamped to 1: the error beyond 1 must not push the range around."""
    x = np.concatenate([np.linspace(0, 0.25, 10_000), [100.0]]).astype(np.float32)
    free = np.minimum(x, 1.0)
    bounded = choose_range(histogram_of(x), "mse", 2, limits=(0.0, 1.0))
    assert bounded == pytest.approx(choose_range(histogram_of(free), "mse", 2), rel=0.1)


@pytest.mark.parametrize("method", ["max", "minmax:9", "percentile:5", "percentile:x"])
def test_unknown_method_is_refused(method: str) -> None:
    with pytest.raises(RecipeError, match=r"method|percentile"):
        choose_range(Histogram(), method, 8)
