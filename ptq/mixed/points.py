"""Points: an allocation made into a quantised network, and measured on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.class_axis import class_axis
from ptq.execute.float import FloatRunner
from ptq.mixed.rounding import plan_of
from ptq.mixed.study import Study
from ptq.passes.context import Batch, Progress
from ptq.pipeline import Result, finish, learn_rounding
from ptq.report.metrics import Fidelity
from ptq.report.session import Session, open_session
from ptq.report.summary import model_bytes

Array = npt.NDArray[Any]
Predict = Callable[[Batch], Mapping[str, Array]]
Metric = Callable[[Predict], float]
"""A user's measure: from a function of batches of inputs, a fraction; 1 is perfect."""


@dataclass(frozen=True)
class Quality:
    """How near a network is to the float one, on held-out samples.

    loss: mean KL to float in nats (or squared error over energy, where there are no classes).
    drop: points lost, of top-1 agreement (in percent) or of the user's metric.
    """

    samples: int
    loss: float
    agreement: float | None
    sqnr_db: float | None
    drop: float | None


@dataclass(frozen=True)
class Point:
    """A measured allocation. predicted: its loss by the scores, in nats."""

    precision_map: dict[str, str]
    average_bits: float
    bops: float
    size_bytes: int
    predicted: float
    quality: Quality
    latency_ms: float | None = None
    budgets: dict[str, float] | None = None


class Judge:
    """Measures networks against the float one on a study's held-out samples."""

    def __init__(self, study: Study, metric: Metric | None = None) -> None:
        """Run the float model once. metric: measures the drop instead of top-1 agreement."""
        self._study = study
        self._metric = metric
        outputs = [str(v.name) for v in study.context.model.graph.outputs]
        runner = FloatRunner(study.context.model, outputs)
        self._wanted = [(batch, list(runner.run(batch).values())) for batch in study.held_out(32)]
        self._best = None if metric is None else metric(_predictor(study.context.model))
        runner.close()

    def quality(self, model: ir.Model) -> Quality:
        """Measure a network that the `onnx` target printed with float boundaries."""
        session = open_session(model)
        fidelity, losses = Fidelity(), []
        for done, (batch, wanted) in enumerate(self._wanted, 1):
            got = list(session.predict(batch).values())
            losses.append(sum(rowwise_loss(x, y) for x, y in zip(wanted, got, strict=True)))
            fidelity.add(wanted[0], got[0])
            self._study.context.report(Progress("measure", done, len(self._wanted)))
        scores = fidelity.scores()
        agreement = scores.top1_agreement
        drop = None if agreement is None else 100 * (1 - agreement)
        if self._metric is not None and self._best is not None:
            drop = 100 * (self._best - self._metric(session.predict))
        loss = np.concatenate([np.atleast_1d(part) for part in losses])
        return Quality(len(loss), float(loss.mean()), agreement, scores.sqnr_db, drop)


def build(study: Study, precision_map: Mapping[str, str]) -> Result:
    """The quantised network of an allocation, as the recipe's effort makes it."""
    run = study.with_precisions(precision_map)
    plan = learn_rounding(run.context, plan_of(study, run))
    return finish(run, plan, study.source)


def file_bytes(result: Result) -> int:
    """Size of the emitted model."""
    return model_bytes(result.model)


def rowwise_loss(wanted: Array, got: Array) -> npt.NDArray[np.float64]:
    """KL(softmax wanted || softmax got) of each sample, or its squared error over its energy."""
    axis = class_axis(wanted.shape)
    if axis is None:
        x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (wanted, got))
        energy = np.maximum(np.square(x).sum(axis=1), 1e-12)
        return np.asarray(0.5 * np.square(x - y).sum(axis=1) / energy)
    p, q = (_log_softmax(a.astype(np.float64), axis) for a in (wanted, got))
    divergence = (np.exp(p) * (p - q)).sum(axis=axis)
    return np.asarray(divergence.reshape(len(wanted), -1).sum(axis=1))


def _log_softmax(x: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _predictor(model: ir.Model) -> Predict:
    session: Session = open_session(model, name="float")
    return session.predict
