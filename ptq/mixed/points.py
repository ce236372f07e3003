"""Points: an allocation made into a quantised network, and measured on held-out samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.distances import divergences
from ptq.execute.class_axis import class_axis
from ptq.execute.float import FloatRunner
from ptq.mixed.choose import Chooser, precision_map
from ptq.mixed.costs import average_bits
from ptq.mixed.rounding import plan_of
from ptq.mixed.study import Study
from ptq.passes.context import Batch, Progress
from ptq.pipeline import finish
from ptq.precision import Precision
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.metrics import Fidelity
from ptq.report.session import open_session
from ptq.report.summary import model_bytes
from ptq.result import Result

Array = npt.NDArray[Any]
Precisions = Mapping[str, Precision]
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
    """A measured allocation. predicted: the sum of its scores, in nats."""

    name: str
    precision_map: dict[str, str]
    average_bits: float
    bops: float
    size_bytes: int
    predicted: float
    quality: Quality
    latency_ms: float | None = None


class Judge:
    """Measures networks against the float one on a study's held-out samples."""

    def __init__(self, study: Study, metric: Metric | None = None) -> None:
        """Run the float model once. metric: measures the drop instead of top-1 agreement."""
        self._study = study
        self._metric = metric
        model = study.context.model
        runner = FloatRunner(model, [str(v.name) for v in model.graph.outputs])
        self._wanted = [(b, list(runner.run(b).values())) for b in study.held_out(32)]
        runner.close()
        self._best = 0.0 if metric is None else metric(open_session(model).predict)

    def quality(self, model: ir.Model) -> Quality:
        """Measure an emitted network."""
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
        if self._metric is not None:
            drop = 100 * (self._best - self._metric(session.predict))
        loss = np.concatenate([np.atleast_1d(part) for part in losses])
        return Quality(len(loss), float(loss.mean()), agreement, scores.sqnr_db, drop)

    def latency_ms(self, model: ir.Model, seconds: float = 1.0) -> float:
        """Median latency of one sample, all CPUs."""
        options = BenchOptions(seconds=seconds)
        return bench({"it": open_session(model)}, self.one_sample(), options).timings[0].p50_ms

    def one_sample(self) -> Batch:
        """A batch of one, or of the size that the model fixes."""
        batch, _ = self._wanted[0]
        fixed = self._study.run.counted.calibration.fixed_batch is not None
        if fixed or not all(x.ndim for x in batch.values()):
            return batch
        return {name: x[:1] for name, x in batch.items()}


@dataclass(frozen=True)
class Workshop:
    """Builds and measures allocations of one study; what was measured is kept in its folder."""

    chooser: Chooser
    judge: Judge
    timed: bool = False

    @property
    def study(self) -> Study:
        """The network and its samples."""
        return self.chooser.study

    def build(self, said: Mapping[str, str]) -> Result:
        """The quantised network of a precision map."""
        run = self.study.with_precisions(said)
        return finish(run, plan_of(self.study, run), self.study.source)

    def made(self, precisions: Precisions) -> Result:
        """The quantised network of an allocation."""
        return self.build(precision_map(precisions))

    def measure(self, precisions: Precisions, name: str = "") -> Point:
        """Build it and measure it, unless that was done before."""
        said = precision_map(precisions)
        path = self._path(said)
        if path.exists():
            return replace(msgspec.json.decode(path.read_bytes(), type=Point), name=name)
        result = self.build(said)
        sizes, problem = self.chooser.sizes, self.chooser.problem
        point = Point(
            name,
            said,
            average_bits(sizes, {n: p.weight_bits or 8 for n, p in precisions.items()}),
            problem.cost("bops", precisions),
            model_bytes(result.model),
            problem.cost("loss", precisions),
            self.judge.quality(result.model),
            self.judge.latency_ms(result.model) if self.timed else None,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(point))
        temporary.replace(path)
        return point

    def _path(self, said: Mapping[str, str]) -> Any:
        recipe = self.study.recipe
        how = (
            sorted(said.items()),
            recipe.effort,
            recipe.target,
            recipe.activation_bits,
            self.timed,
        )
        digest = hashlib.blake2b(repr(how).encode(), digest_size=12).hexdigest()
        return self.study.cache / "points" / f"{digest}.json"


def rowwise_loss(wanted: Array, got: Array) -> npt.NDArray[np.float64]:
    """KL(softmax wanted || softmax got) of each sample, or half its squared error over its energy.

    wanted, got: [samples, ...], scores of classes if they have an axis of them -> [samples].
    """
    axis = class_axis(wanted.shape)
    if axis is None:
        x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (wanted, got))
        energy = np.maximum(np.square(x).sum(axis=1), 1e-12)
        return np.asarray(0.5 * np.square(x - y).sum(axis=1) / energy)
    return np.asarray(divergences(wanted, got, axis).reshape(len(wanted), -1).sum(axis=1))
