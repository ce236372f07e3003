"""Guessing how a classifier wants its pixels, when nobody said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ptq.calib_data.calibration import Calibration
from ptq.calib_data.conform import with_batch
from ptq.calib_data.pixels import is_pixels
from ptq.calib_data.preprocess import PRESETS, Preprocess
from ptq.calib_data.sources import open_source
from ptq.calib_data.spec import Array, Batch, InputSpec

CANDIDATES = ("imagenet", "lite", "unit", "raw", "caffe")
"""Presets whose differences show; inception differs from lite by less than a grey level."""

_SAMPLES = 32


@dataclass(frozen=True)
class Guess:
    """The best preset and the score of each, in nats."""

    preset: str
    scores: Mapping[str, float]

    @property
    def preprocess(self) -> Preprocess:
        """The preset itself."""
        return PRESETS[self.preset]


def guess_preprocess(
    predict: Callable[[Batch], Array],
    source: str | Path,
    inputs: Sequence[InputSpec],
    *,
    seed: int = 0,
) -> Guess | None:
    """Try the presets on 32 images and keep the one under which the classifier knows most.

    Score: I = H(mean_i p_i) - mean_i H(p_i), p_i the class probabilities of image i: high if
    each answer is sure and the answers differ (the logarithm of the Inception Score,
    arXiv 1606.03498). No labels are used.

    predict: the float model, a batch to logits or probabilities [N, classes].
    Returns None where there is nothing to guess: the samples are not raw pixels for a single
    float image input, or the output is not that of a classifier.

    Raises:
        CalibrationError: the samples cannot be read.
    """
    if len(inputs) != 1 or not inputs[0].is_image or inputs[0].dtype.kind != "f":
        return None
    data = Calibration(
        open_source(source, inputs, limit=_SAMPLES, seed=seed), tuple(inputs), None, _SAMPLES, seed
    )
    first = next(data.source.read(), None)
    if first is None or not is_pixels(with_batch(first[inputs[0].name], inputs[0]), inputs[0]):
        return None
    scores: dict[str, float] = {}
    for name in CANDIDATES:
        outputs = [predict(batch) for batch in replace(data, preprocess=PRESETS[name])]
        if any(y.ndim != 2 or y.shape[1] < 2 for y in outputs):
            return None
        scores[name] = information(np.concatenate(outputs))
    return Guess(max(scores, key=lambda name: scores[name]), scores)


def information(y: Array) -> float:
    """Mutual information of image and class, in nats. y: [N, classes] logits or probabilities."""
    p = y.astype(np.float64)
    if p.min() < 0 or not np.allclose(p.sum(axis=1), 1.0, atol=1e-3):
        p = np.exp(p - p.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    return float(_entropy(p.mean(axis=0)) - _entropy(p).mean())


def _entropy(p: Array) -> Array:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1))
