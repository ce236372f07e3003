"""The statistics of the gates against scipy's, and what they do where scipy is not asked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ptq.report.significance import mcnemar, median_interval, noise_ratio, smallest_loss


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (1, 0), (5, 5), (30, 12), (12, 30), (400, 350)]
)
def test_mcnemar_is_the_binomial_test_of_the_changed_samples(lost: int, gained: int) -> None:
    wanted = 1.0
    if lost + gained:
        wanted = stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue
    assert mcnemar(lost, gained) == pytest.approx(wanted, rel=1e-9)


def test_a_tolerated_loss_is_the_hypothesis_that_is_tested() -> None:
    # 1,000 changed samples of which 10 % more are lost than gained: 550 and 450
    wanted = stats.binomtest(600, 1000, 0.55, alternative="greater").pvalue
    assert mcnemar(600, 400, tolerated=100) == pytest.approx(wanted, rel=1e-9)
    rng = np.random.default_rng(0)
    lost = rng.binomial(1000, 0.55, size=2000)  # a loss of exactly what is tolerated
    failures = np.mean([mcnemar(int(n), 1000 - int(n), 100) <= 0.01 for n in lost])
    assert failures <= 0.015
    assert mcnemar(20, 0, tolerated=25) == 1


def test_the_smallest_loss_is_the_first_significant_one() -> None:
    for tolerated in (0.0, 5.0):
        for alpha in (0.05, 0.01, 0.001):
            least = smallest_loss(1000, tolerated, alpha)
            assert mcnemar(least, 0, tolerated) <= alpha < mcnemar(least - 1, 0, tolerated)


@pytest.mark.parametrize("count", [6, 7, 20, 51, 300])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.98])
def test_median_interval_is_that_of_the_quantile_test(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    found = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence)
    wanted = tuple(np.nan_to_num([found.low, found.high], nan=np.nan))
    if np.isnan(wanted).any():  # scipy: too few values for this confidence
        wanted = (values.min(), values.max())
    assert median_interval(values, confidence) == pytest.approx(wanted)


def test_a_median_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [
        low <= 0 <= high
        for low, high in (median_interval(rng.normal(size=25)) for _ in range(2000))
    ]
    assert 0.95 <= np.mean(hits) <= 0.98  # discrete: 0.957 is what 25 values can do


def test_few_values_give_their_range() -> None:
    assert median_interval(np.float64([3, 1, 2])) == (1, 3)
    assert median_interval(np.float64([5])) == (5, 5)


def test_noise_ratio_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    before = rng.lognormal(size=200)
    now = before * rng.lognormal(0.2, 0.3, size=200)

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return 10 * np.log10(y.sum(axis) / x.sum(axis))

    found = stats.bootstrap(
        (before, now), statistic, paired=True, method="percentile", alternative="greater",
        confidence_level=0.99, n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    measured, low = noise_ratio(before, now, alpha=0.01)
    assert measured == pytest.approx(10 * np.log10(now.sum() / before.sum()))
    # 2000 draws put the 1 % quantile within a tenth of the interval's length
    assert low == pytest.approx(found.confidence_interval.low, abs=0.1 * (measured - low) + 0.02)


def test_samples_without_noise_do_not_break_the_bootstrap() -> None:
    before, now = np.zeros(8), np.zeros(8)
    before[0] = now[0] = 1.0
    assert noise_ratio(before, now, alpha=0.01) == (0.0, 0.0)
