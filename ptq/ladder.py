"""The ladder: stages in order, each kept only where it brings the network nearer to the float one.

What "nearer" means is measured on the integer network itself, on calibration samples that learning
does not use: the product of the KL divergence and the squared error of the outputs. Each of the two
is noisy on few samples, KL most (a few close calls decide it); what lowers their product is a gain.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.execute.float import FloatRunner
from ptq.integer.lower import lower
from ptq.passes.context import Batch, Context, Progress
from ptq.plan import Plan
from ptq.report.rungs import Rung
from ptq.targets import TARGETS

_LOG = logging.getLogger("ptq")

Stage = Callable[[Context, Plan], Plan]
Array = npt.NDArray[Any]

MOST_SAMPLES = 128


@dataclass(frozen=True)
class Step:
    """A stage, and what reports call it. judged: it is kept only if it is a gain."""

    name: str
    stage: Stage
    judged: bool = True


def climb(
    context: Context, steps: Sequence[Step], start: Plan | None = None
) -> tuple[Plan, tuple[Rung, ...]]:
    """Run the stages; returns the plan, and a rung for each stage that left a complete plan."""
    judge = Judge(context)
    plan, best, rungs = start or Plan(), np.full(2, np.inf), list[Rung]()
    if steps and start is not None and _complete(context, start):
        best = judge.distances(start)
    for index, step in enumerate(steps):
        started = time.monotonic()
        after = _run(context, f"stage {index} {step.name}", step.stage, plan)
        if after is plan or not _complete(context, after):
            plan = after
            continue
        context.report(Progress(f"judge {step.name}", 0, None))
        found = judge.distances(after)
        kept = not step.judged or bool(found.prod() <= best.prod())
        rungs.append(judge.rung(step.name, found, kept, time.monotonic() - started))
        if kept:
            plan, best = after, found
        else:
            _LOG.info("%s is no gain on held-out samples and is left out", step.name)
    return plan, tuple(rungs)


def _run(context: Context, key: str, stage: Stage, plan: Plan) -> Plan:
    """A stage's plan: from an interrupted run that had finished it, or by running it."""
    if context.checkpoints is None:
        return stage(context, plan)
    _, known = context.checkpoints.load(key)
    if known is None:
        known = stage(context, plan)
        context.checkpoints.save(key, 1, known)
    return known


def _complete(context: Context, plan: Plan) -> bool:
    """Every layer has its codes, so that the plan can run."""
    return all(
        unit.name in plan.weights and plan.weights[unit.name].codes is not None
        for unit in context.outline.weighted
    )


class Judge:
    """Distances of integer networks to the float one on held-out samples.

    The float outputs are computed once, when they are first needed.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.outputs = [str(value.name) for value in context.model.graph.outputs]
        self._wanted: list[tuple[Batch, dict[str, Array]]] = []

    def distances(self, plan: Plan) -> npt.NDArray[np.float64]:
        """[KL, squared error] summed over the samples; KL only of [n, classes]."""
        program = lower(self.context.model, self.context.outline, plan)
        runner = FloatRunner(TARGETS["onnx"](program, io="float"), self.outputs)
        total = np.zeros(2)
        for batch, wanted in self._samples():
            found = runner.run(batch)
            for name in self.outputs:
                if wanted[name].dtype.kind == "f":
                    total += distances(wanted[name], found[name])
        runner.close()
        return total

    def rung(self, name: str, found: npt.NDArray[np.float64], kept: bool, seconds: float) -> Rung:
        """The figures of a report."""
        outputs = [x for _, wanted in self._samples() for x in wanted.values()]
        floats = [x for x in outputs if x.dtype.kind == "f"]
        energy = sum(float(np.square(x, dtype=np.float64).sum()) for x in floats)
        scores = sum(len(x) for x in floats if is_scores(x))
        sqnr = 10 * np.log10(energy / found[1]) if energy and found[1] else None
        return Rung(
            name,
            float(found[0] / scores) if scores else None,
            None if sqnr is None else float(sqnr),
            kept,
            round(seconds, 1),
        )

    def _samples(self) -> Sequence[tuple[Batch, dict[str, Array]]]:
        if not self._wanted:
            runner = FloatRunner(self.context.model, self.outputs)
            size = self.context.batch_size(self.outputs)
            self._wanted = [(b, runner.run(b)) for b in held_out_batches(self.context, size)]
            runner.close()
        return self._wanted


def held_out_batches(context: Context, size: int) -> Iterator[Batch]:
    """The samples that nothing is learned on, at most MOST_SAMPLES.

    A model whose batch size is fixed takes the whole batches that they are in.
    """
    index, start, left = context.held_out(), 0, MOST_SAMPLES
    shapes = [value.shape for value in context.model.graph.inputs]
    fixed = any(not shape or isinstance(shape[0], int) for shape in shapes)
    for batch in context.batches(size):
        count = len(next(iter(batch.values())))
        rows = index[(index >= start) & (index < start + count)][:left] - start
        if fixed and len(rows):
            rows = np.arange(count)
        if len(rows):
            yield {name: x[rows] for name, x in batch.items()}
        start, left = start + count, left - len(rows)


def distances(wanted: Array, found: Array) -> npt.NDArray[np.float64]:
    """[KL, squared error] of outputs; KL only of [n, classes], else squared error twice."""
    squared = float(np.square(found - wanted, dtype=np.float64).sum())
    if not is_scores(wanted):
        return np.array([squared, squared])
    p, q = (_log_softmax(x.astype(np.float64)) for x in (wanted, found))
    return np.array([(np.exp(p) * (p - q)).sum(), squared])


def is_scores(x: Array) -> bool:
    """A row of class scores for each sample."""
    return x.ndim == 2 and x.shape[1] > 1


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
