"""Is a difference real? Exact and resampled tests on paired samples, and the interval of a median.

All of them look at the same samples, or the same moments, twice: what both models share cancels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000


def mcnemar(lost: int, gained: int, tolerated: float = 0.0) -> float:
    """Exact one-sided McNemar test: how often chance makes of a tolerated loss one like this.

    P(X >= lost), X ~ Binomial(n, 1/2 + tolerated / 2n), n = lost + gained: samples that both models
    get right, or both wrong, say nothing; of the others this part is lost where lost - gained is
    `tolerated` in the long run. lost: right before, wrong now; gained: the other way round.
    Source: McNemar 1947, Psychometrika 12(2), the exact form, which is tolerated = 0.
    """
    changed = lost + gained
    if lost == 0 or changed <= tolerated:
        return 1.0
    return float(bdtrc(lost - 1, changed, 0.5 + tolerated / (2 * changed)))


def smallest_loss(samples: int, tolerated: float, alpha: float) -> int:
    """The fewest lost samples, with none gained, that `mcnemar` calls significant at `alpha`."""
    losses = range(1, samples + 1)
    return next((lost for lost in losses if mcnemar(lost, 0, tolerated) <= alpha), samples)


def noise_ratio(before: Floats, now: Floats, alpha: float, seed: int = 0) -> tuple[float, float]:
    """How much more noise there is now, in dB, and the bound it exceeds with 1 - alpha confidence.

    10 log10(sum now / sum before); the bound is the alpha quantile of the paired percentile
    bootstrap (Efron 1979, Annals of Statistics 7(1)): samples are drawn with their pairs.
    before, now: [samples] squared errors against the same wanted outputs, sums above zero.
    """
    count = len(before)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 10 * np.log10((drawn @ now) / (drawn @ before))
    ratios = ratios[np.isfinite(ratios)]  # a draw of samples without noise says nothing
    measured = 10 * math.log10(now.sum() / before.sum())
    return measured, float(np.quantile(ratios, alpha)) if len(ratios) else measured


def median_interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free confidence interval of the median: two of the values themselves.

    The k-th smallest and k-th largest, k the greatest with 2 P(X < k) <= 1 - confidence,
    X ~ Binomial(n, 1/2). Too few values for that confidence (5 at 95 %) give their whole range.
    """
    ordered = np.sort(values)
    count, tail, k = len(ordered), 0.0, 0
    while k < count // 2:
        tail += math.comb(count, k) / 2**count
        if 2 * tail > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return float(ordered[k - 1]), float(ordered[count - k])
