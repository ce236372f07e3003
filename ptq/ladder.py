"""The ladder: stages in order, each kept only where it brings the network nearer to the float one.

What "nearer" means is measured on the integer network itself, on calibration samples that learning
does not use: softened KL divergence and squared error of the outputs together (`ptq.distances`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.calib_data.spec import common_batch, input_specs
from ptq.distances import Distances, distances, is_nearer, is_scores
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
    """A stage, and what reports call it.

    judged: it is kept only if it is a gain. doubt: it is left out only for a loss beyond so many
    standard errors.
    """

    name: str
    stage: Stage
    judged: bool = True
    doubt: float = 0.0


def climb(
    context: Context, steps: Sequence[Step], start: Plan | None = None
) -> tuple[Plan, tuple[Rung, ...]]:
    """Run the stages; returns the plan, and a rung for each stage that left a complete plan."""
    judge = Judge(context)
    plan, rungs = start or Plan(), list[Rung]()
    best: Sequence[Distances] = ()
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
        kept = not step.judged or not best or is_nearer(found, best, step.doubt)
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

    def distances(self, plan: Plan) -> Sequence[Distances]:
        """Of every float output, on all samples."""
        program = lower(self.context.model, self.context.outline, plan)
        runner = FloatRunner(TARGETS["onnx"](program, io="float"), self.outputs)
        parts: dict[str, list[Distances]] = {}
        for batch, wanted in self._samples():
            found = runner.run(batch)
            for name, x in wanted.items():
                parts.setdefault(name, []).append(distances(x, found[name]))
        runner.close()
        return [np.concatenate(part, axis=1) for part in parts.values()]

    def rung(self, name: str, found: Sequence[Distances], kept: bool, seconds: float) -> Rung:
        """The figures of a report."""
        outputs = [list(wanted.values()) for _, wanted in self._samples()]
        energy = sum(float(np.square(x, dtype=np.float64).sum()) for part in outputs for x in part)
        squared = sum(float(distance[2].sum()) for distance in found)
        scored = [d[0] for d, x in zip(found, outputs[0], strict=True) if is_scores(x)]
        return Rung(
            name,
            float(np.concatenate(scored).mean()) if scored else None,
            float(10 * np.log10(energy / squared)) if energy and squared else None,
            kept,
            round(seconds, 1),
        )

    def _samples(self) -> Sequence[tuple[Batch, dict[str, Array]]]:
        if not self._wanted:
            runner = FloatRunner(self.context.model, self.outputs)
            size = self.context.batch_size(self.outputs)
            for batch in held_out_batches(self.context, size):
                floats = {n: x for n, x in runner.run(batch).items() if x.dtype.kind == "f"}
                self._wanted.append((batch, floats))
            runner.close()
        return self._wanted


def held_out_batches(context: Context, size: int) -> Iterator[Batch]:
    """The samples that nothing is learned on, at most MOST_SAMPLES.

    A model whose batch size is fixed takes the whole batches that they are in.
    """
    index, start, left = context.held_out(), 0, MOST_SAMPLES
    stackable, fixed = common_batch(input_specs(context.model))
    for batch in context.batches(size):
        count = context.samples_in(batch)
        rows = index[(index >= start) & (index < start + count)][:left] - start
        if len(rows) and (fixed or not stackable):
            rows = np.arange(count)
            yield batch
        elif len(rows):
            yield {name: x[rows] for name, x in batch.items()}
        start, left = start + count, left - len(rows)
