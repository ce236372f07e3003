"""How near two tensors are, accumulated batch by batch in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.execute.class_axis import class_axis

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """Nearness of a tensor to the one it replaces.

    sqnr_db: 10 log10(sum x^2 / sum (x - y)^2); None if they are equal (infinite) or x is zero.
    cosine: of the angle between x and y; None if one of them is zero.
    top1_agreement: part of the rows with the same argmax; None if there are no classes.
    max_error: largest |x - y|; 0 means equal.
    """

    elements: int
    sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    max_error: float


@dataclass
class Fidelity:
    """Streaming accumulator of `Scores`: x is the wanted tensor, y the one at hand."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    power: float = 0.0
    rows: int = 0
    agreed: int = 0
    max_error: float = 0.0

    def add(self, wanted: Array, got: Array) -> None:
        """Add one batch; both arrays have the same shape."""
        if wanted.shape != got.shape:
            raise ValueError(f"got shape {got.shape}, wanted {wanted.shape}")
        if not wanted.size:
            return
        x, y = wanted.astype(np.float64), got.astype(np.float64)
        difference = x - y
        self.elements += x.size
        self.signal += float(np.vdot(x, x))
        self.noise += float(np.vdot(difference, difference))
        self.product += float(np.vdot(x, y))
        self.power += float(np.vdot(y, y))
        self.max_error = max(self.max_error, float(np.abs(difference).max()))
        axis = class_axis(wanted.shape)
        if axis is not None:
            same = x.argmax(axis) == y.argmax(axis)
            self.rows += same.size
            self.agreed += int(same.sum())

    def scores(self) -> Scores:
        """What was found so far."""
        finite = self.signal > 0 and self.noise > 0
        length = math.sqrt(self.signal) * math.sqrt(self.power)
        return Scores(
            elements=self.elements,
            sqnr_db=10 * math.log10(self.signal / self.noise) if finite else None,
            cosine=self.product / length if length else None,
            top1_agreement=self.agreed / self.rows if self.rows else None,
            max_error=self.max_error,
        )


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Top-1 accuracy of a model: the part of the samples that are right."""

    model: str
    samples: int
    top1: float | None
    schema_version: int = 1


@dataclass
class Accuracy:
    """Streaming top-1 accuracy."""

    rows: int = 0
    right: int = 0

    def add(self, output: Array, labels: Array) -> None:
        """output: [N, classes]; labels: [N] integers, or [N, 1]."""
        found = output.reshape(len(output), -1).argmax(axis=1)
        self.right += int((found == labels.reshape(-1)).sum())
        self.rows += len(found)

    @property
    def top1(self) -> float | None:
        """Part of the rows that are right."""
        return self.right / self.rows if self.rows else None
