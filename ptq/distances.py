"""How far the outputs of an integer network are from the float network's, and which is nearer.

Few samples judge, so what a network gains must not hang on a few close calls. Squared error is
steady and summed. KL divergence is not: most of its sum lies in some undecided samples, so networks
are compared sample by sample, by the mean of the logarithms of the ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Distances = npt.NDArray[np.float64]
"""[2, n]: of every sample the KL divergence in nats (where outputs are scores) and the squared
error; the squared error twice where they are not."""

FLOOR = 1e-2
"""Share of the mean KL below which a sample's KL counts as none."""


def distances(wanted: Array, found: Array) -> Distances:
    """Of one output, a column for each index of its first axis."""
    rows = len(wanted) if wanted.ndim else 1
    error = np.asarray(found, np.float64) - wanted
    squared = np.square(error).reshape(rows, -1).sum(axis=1)
    if not is_scores(wanted):
        return np.stack([squared, squared])
    p, q = (_log_softmax(x.astype(np.float64)) for x in (wanted, found))
    return np.stack([(np.exp(p) * (p - q)).sum(axis=1), squared])


def is_nearer(after: Sequence[Distances], before: Sequence[Distances]) -> bool:
    """True unless the outputs, all together, went away from the float ones."""
    return sum(_log_ratio(a, b) for a, b in zip(after, before, strict=True)) <= 0


def is_scores(x: Array) -> bool:
    """A row of class scores for each sample."""
    return x.ndim == 2 and x.shape[1] > 1


def _log_ratio(after: Distances, before: Distances) -> float:
    """Of KL divergence sample by sample, plus that of the whole squared error."""
    tiny = np.finfo(np.float64).tiny
    floor = max(FLOOR * float(before[0].mean()), tiny)
    each = np.log((after[0] + floor) / (before[0] + floor)).mean()
    whole = np.log((after[1].sum() + tiny) / (before[1].sum() + tiny))
    return float(each + whole)


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
