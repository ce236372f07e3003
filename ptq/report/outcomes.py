"""What a model does with every single sample, so that two models can be paired later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptq.errors import CalibrationError
from ptq.report.comparison import Labelled
from ptq.report.session import Batch, Session

Array = npt.NDArray[Any]
Judge = Literal["labels", "float", "none"]


@dataclass(frozen=True)
class Outcomes:
    """One entry a sample, in the order of the data.

    digest: of the samples and labels as they were fed; only equal ones may be paired.
    judge: who says what is right: the labels, the float model's own class, or nobody.
    right: "1" or "0" a sample; "" without a judge.
    noise: squared error of all outputs against the float model's; empty without it.
    signal: sum of squares of the float model's outputs.
    """

    samples: int
    digest: str
    judge: Judge
    right: str
    noise: tuple[float, ...]
    signal: float

    @property
    def accuracy(self) -> float | None:
        """Part of the samples that are right."""
        return self.right.count("1") / len(self.right) if self.right else None

    @property
    def sqnr_db(self) -> float | None:
        """Of the outputs, against the float model's; None if unknown or infinite."""
        total = sum(self.noise)
        return float(10 * np.log10(self.signal / total)) if total > 0 < self.signal else None


def observe(
    model: Session,
    reference: Session | None,
    data: Iterable[Labelled],
    progress: Callable[[int], None] | None = None,
) -> Outcomes:
    """Run the model, and the float reference if there is one, on every sample.

    progress: called with the number of samples done; an exception raised in it cancels the run.

    Raises:
        CalibrationError: the data is empty or does not fit.
    """
    digest = hashlib.blake2b(digest_size=16)
    right: list[str] = []
    noise: list[float] = []
    signal, samples = 0.0, 0
    judge: Judge = "none"
    for batch, labels in data:
        _add(digest, batch, labels)
        got = list(model.predict(batch).values())
        wanted = None if reference is None else list(reference.predict(batch).values())
        rows = max((len(x) for x in batch.values() if x.ndim), default=1)
        if wanted is not None:
            noise += _by_row(rows, [w - g for w, g in zip(wanted, got, strict=True)])
            signal += sum(_by_row(rows, wanted))
        truth = labels if labels is not None else _classes(wanted, rows)
        found = _classes(got, rows)
        if truth is not None and found is not None:
            judge = "labels" if labels is not None else "float"
            right += ["1" if same else "0" for same in found == truth.reshape(-1)]
        samples += rows
        if progress is not None:
            progress(samples)
    if not samples:
        raise CalibrationError("no samples to judge the model on: give more data")
    return Outcomes(samples, digest.hexdigest(), judge, "".join(right), tuple(noise), signal)


def _add(digest: Any, batch: Batch, labels: Array | None) -> None:
    for name in sorted(batch):
        digest.update(f"{name}{batch[name].dtype}{batch[name].shape}".encode())
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, np.int64).tobytes())


def _by_row(rows: int, arrays: list[Array]) -> list[float]:
    """Sums of squares a sample; one for the whole batch if an output is not laid out by sample."""
    squares = [np.square(x.astype(np.float64)) for x in arrays if x.dtype.kind == "f"]
    if all(x.ndim and len(x) == rows for x in squares):
        totals = sum((x.reshape(rows, -1).sum(axis=1) for x in squares), np.zeros(rows))
        return [float(f"{value:.6g}") for value in totals]
    return [float(sum(x.sum() for x in squares))]


def _classes(outputs: list[Array] | None, rows: int) -> Array | None:
    """The class of every sample, [rows], if the first output is one of classes."""
    if outputs is None:
        return None
    first = outputs[0]
    flat = first.reshape(len(first), -1) if first.ndim else first
    classes = flat.ndim == 2 and flat.shape[1] > 1 and flat.shape[1] == first.shape[1]
    return flat.argmax(axis=1) if classes and len(flat) == rows else None
