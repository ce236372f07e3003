"""How far the outputs of an integer network are from the float network's, and which is nearer.

Few samples judge, so what counts must be steady on few. KL divergence itself is not: most of its
sum lies in the few samples that the network is undecided about. Squared error is, and so is KL
divergence once each sample's scores are softened to a standard deviation of one, where every class
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Distances = npt.NDArray[np.float64]
"""[3, n], of every sample: KL divergence in nats, KL divergence of softened scores, squared error;
the squared error three times where an output is not scores."""

TINY = 1e-30


def distances(wanted: Array, found: Array) -> Distances:
    """Of one output, a column for each index of its first axis."""
    rows = len(wanted) if wanted.ndim else 1
    wanted, found = (np.asarray(x, np.float64) for x in (wanted, found))
    squared = np.square(found - wanted).reshape(rows, -1).sum(axis=1)
    if not is_scores(wanted):
        return np.stack([squared] * 3)
    temperature = np.maximum(wanted.std(axis=1, keepdims=True), TINY)
    softened = divergences(wanted / temperature, found / temperature)
    return np.stack([divergences(wanted, found), softened, squared])


def divergences(wanted: Array, found: Array, axis: int = -1) -> npt.NDArray[np.float64]:
    """KL(softmax wanted || softmax found) in nats, of the scores along `axis`, which goes."""
    p, q = (_log_softmax(np.asarray(x, np.float64), axis) for x in (wanted, found))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=axis))


def is_nearer(after: Sequence[Distances], before: Sequence[Distances], doubt: float = 0.0) -> bool:
    """True unless the outputs, all together, went away from the float ones.

    Softened KL divergence and squared error weigh the same: what lowers their product is a gain.
    doubt: a loss counts beyond so many of its standard errors, of the samples' choice.
    """
    changes, errors = zip(*map(_change, after, before), strict=True)
    return float(np.sum(changes)) <= doubt * float(np.linalg.norm(errors))


def _change(after: Distances, before: Distances) -> tuple[float, float]:
    """Logarithm of the product's ratio in one output, and its standard error by the jackknife."""
    sums = [x[1:].sum(axis=1, keepdims=True) for x in (after, before)]
    others = [np.maximum(total - x[1:], 0) for total, x in zip(sums, (after, before), strict=True)]
    whole, without = (np.log((a + TINY) / (b + TINY)).sum(axis=0) for a, b in (sums, others))
    n = len(without)
    spread = np.square(without - without.mean()).sum() * (n - 1) / n
    return float(whole[0]), float(np.sqrt(spread))


def is_scores(x: Array) -> bool:
    """A row of class scores for each sample."""
    return x.ndim == 2 and x.shape[1] > 1


def _log_softmax(x: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=axis, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)))
