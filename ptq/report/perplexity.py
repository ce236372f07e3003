"""Perplexity: how surprised a language model is by each token, given those before it.

    exp(-1/n sum_t log p(token_t | tokens before t)),  p = softmax(logits at t - 1)

over all tokens of all samples but the first of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.calib_data import InputSpec
from ptq.errors import CalibrationError, UsageError

Array = npt.NDArray[Any]

SCHEMA_VERSION = 1
IDS = "input_ids"
MASK = "attention_mask"
"""What Hugging Face's exports call the tokens, and which of them count."""
SIDE_INPUTS = (MASK, "position_ids", "token_type_ids", "cache_position")


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a model.

    tokens: that were predicted. cross_entropy: their mean, in nats.
    """

    model: str
    samples: int
    tokens: int
    cross_entropy: float
    perplexity: float
    schema_version: int = SCHEMA_VERSION


def token_input(specs: Sequence[InputSpec], wanted: str | None = None) -> str:
    """The input that holds the tokens: the one asked for, `input_ids`, or the only integer matrix.

    Raises:
        UsageError: it is not an integer matrix, or there are none or several of them.
    """
    found = [spec.name for spec in specs if spec.dtype.kind in "iu" and spec.rank == 2]
    candidates = [name for name in found if name not in SIDE_INPUTS]
    chosen = wanted or (IDS if IDS in candidates else None)
    if chosen is None and len(candidates) == 1:
        return candidates[0]
    if chosen not in found:
        inputs = ", ".join(f"{spec.name} {spec}" for spec in specs)
        raise UsageError(
            f"perplexity: got the inputs {inputs}; wanted one of integers [samples, tokens]"
            f"{'' if wanted is None else f' called {wanted!r}'}; name it with --ids"
        )
    return str(chosen)


@dataclass
class Surprise:
    """Streaming sum of the cross entropies. where: for messages, what the tokens are called."""

    where: str
    samples: int = 0
    tokens: int = 0
    total: float = 0.0

    def add(self, ids: Array, outputs: dict[str, Array], mask: Array | None = None) -> None:
        """Add samples: ids [n, T] integers, outputs by name, mask [n, T] (0: does not count).

        Raises:
            CalibrationError: nothing to predict, no logits among the outputs, or tokens that
                they do not have.
        """
        if ids.shape[1] < 2:
            raise CalibrationError(
                f"{self.where}: got samples of {ids.shape[1]} token; wanted 2 or more: the first "
                "one is never predicted"
            )
        logits = logits_of(outputs, ids.shape)
        self._check(ids, logits.shape[-1])
        counted = np.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        for row, x, counts in zip(ids, logits, counted, strict=True):
            losses = cross_entropies(x[:-1], row[1:])[counts[1:]]
            self.total += float(losses.sum())
            self.tokens += losses.size
        self.samples += len(ids)

    def found(self, model: str) -> Perplexity:
        """The perplexity of what was added.

        Raises:
            CalibrationError: no token counted, or logits that are no numbers.
        """
        if not self.tokens:
            raise CalibrationError(f"{self.where}: no token to predict; give more samples")
        mean = self.total / self.tokens
        if not math.isfinite(mean):
            raise CalibrationError(f"{self.where}: {model} gives logits that are NaN or infinite")
        return Perplexity(model, self.samples, self.tokens, mean, math.exp(min(mean, 700.0)))

    def _check(self, ids: Array, classes: int) -> None:
        wrong = np.argwhere((ids < 0) | (ids >= classes))
        if len(wrong):
            n, t = (int(i) for i in wrong[0])
            raise CalibrationError(
                f"{self.where}: sample {self.samples + n}, position {t}: got token {ids[n, t]}; "
                f"the model's logits have {classes} tokens: use the tokenizer of this model"
            )


def cross_entropies(logits: Array, targets: Array) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target]: [T, V] float, [T] integers -> [T] float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    own = np.take_along_axis(x, targets[:, None].astype(np.intp), axis=1)[:, 0]
    return np.asarray(np.log(np.exp(x).sum(axis=1)) - own)


def logits_of(outputs: dict[str, Array], shape: tuple[int, ...]) -> Array:
    """The first output of floats [n, T, V] for tokens [n, T].

    Raises:
        CalibrationError: there is none.
    """
    for x in outputs.values():
        if x.ndim == 3 and x.shape[:2] == shape and x.dtype.kind == "f":
            return x
    shapes = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in outputs.items())
    raise CalibrationError(
        f"perplexity: got the outputs {shapes}; wanted float logits {[*shape, 'vocabulary']}, of "
        "every token's successor: export the model as a causal language model"
    )
