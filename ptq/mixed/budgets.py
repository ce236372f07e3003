"""Budgets: the best network within them, measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ptq.errors import BudgetError, UsageError
from ptq.mixed.latency import confirm, runtime_of, with_latencies
from ptq.mixed.points import Point, Precisions, Workshop
from ptq.mixed.promote import promote
from ptq.mixed.runtimes import Runtime
from ptq.passes.allocate_bits import LOSS, Allocation, Problem, allocate_bits

_LOG = logging.getLogger("ptq")

BISECTIONS = 6
RETRIES = 4
"""Estimated sizes miss a file by its names and headers, latencies by what the machine does else; so
often that is corrected."""


@dataclass(frozen=True)
class Budgets:
    """Upper bounds; None is unbounded.

    latency_on: the target of `ptq compile` that latency is of; None is onnxruntime. drop: points of
    top-1 agreement with the float model, or of `metric`, file.py:function. sizes: of axes that
    the model leaves open, by their names, in a compiled module.
    """

    average_bits: float | None = None
    size_bytes: float | None = None
    bops: float | None = None
    latency_ms: float | None = None
    latency_on: str | None = None
    drop: float | None = None
    metric: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """Those that an allocation can be computed for."""
        named = {
            "average_bits": self.average_bits,
            "size_bytes": self.size_bytes,
            "bops": self.bops,
            "latency_ms": self.latency_ms,
        }
        return {name: limit for name, limit in named.items() if limit is not None}

    @property
    def any(self) -> bool:
        """True if there is one."""
        return bool(self.limits) or self.drop is not None


def within(workshop: Workshop, budgets: Budgets) -> tuple[Precisions, Point]:
    """The allocation that loses least within the budgets; with a drop, the smallest one within it.

    Raises:
        BudgetError: nothing fits; says which budget binds and the nearest value that fits.
    """
    problem = with_overhead(workshop)
    if budgets.latency_ms is None:
        return _found(workshop, problem, budgets.limits, budgets.drop)
    runtime = runtime_of(budgets.latency_on, budgets.sizes)
    return _in_time(workshop, with_latencies(workshop, problem, runtime), budgets, runtime)


def _found(
    workshop: Workshop, problem: Problem, limits: Mapping[str, float], drop: float | None
) -> tuple[Precisions, Point]:
    if drop is None:
        return fitting(workshop, problem, limits)
    return _smallest(workshop, problem, limits, drop)


def _in_time(
    workshop: Workshop, problem: Problem, budgets: Budgets, runtime: Runtime
) -> tuple[Precisions, Point]:
    """Within the latency when measured, too: what a network takes too long is taken off the bound.

    The table of the layers' times was made in another run, when the machine may have been faster.
    """
    limits = dict(budgets.limits)
    wanted, measured_ms = limits["latency_ms"], math.inf
    for _ in range(RETRIES):
        try:
            found = _found(workshop, problem, limits, budgets.drop)
        except BudgetError:
            if measured_ms == math.inf:
                raise
            break
        took = confirm(workshop, found[0], runtime)
        _LOG.warning(
            "latency on %s: predicted %.3f ms, measured %.3f ms (%+.1f %%) in one run",
            runtime.name, took.predicted_ms, took.measured_ms, 100 * took.error,
        )  # fmt: skip
        if took.measured_ms <= wanted:
            return found
        measured_ms = min(measured_ms, took.measured_ms)
        limits["latency_ms"] *= wanted / took.measured_ms
    raise BudgetError(
        f"budget latency_ms: got {wanted:g}; the fastest network found takes {measured_ms:.4g} ms, "
        f"measured on {runtime.name}: raise it to that, or widen the other budgets"
    )


def with_overhead(workshop: Workshop) -> Problem:
    """The problem, with what a file takes besides its weights as measured on one file."""
    problem = workshop.chooser.problem
    widest = {choice.layer: choice.options[-1].precision for choice in problem.choices}
    point = workshop.measure(widest, "widest")
    overhead = point.size_bytes - problem.cost("size_bytes", widest)
    return replace(problem, fixed={**problem.fixed, "size_bytes": overhead})


def fitting(
    workshop: Workshop, problem: Problem, limits: Mapping[str, float]
) -> tuple[Precisions, Point]:
    """The best allocation whose file really has the size that it may have."""
    for _ in range(RETRIES):
        found = allocate_bits(problem, limits)
        point = workshop.measure(found.precisions)
        excess = point.size_bytes - found.costs["size_bytes"]
        if point.size_bytes <= limits.get("size_bytes", math.inf):
            return found.precisions, point
        fixed = {**problem.fixed, "size_bytes": problem.fixed["size_bytes"] + max(excess, 1.0)}
        problem = replace(problem, fixed=fixed)
    raise BudgetError(
        f"budget size_bytes: got {limits['size_bytes']:g}; the file found has {point.size_bytes}: "
        "raise it to that"
    )


def _smallest(
    workshop: Workshop, problem: Problem, limits: Mapping[str, float], drop: float
) -> tuple[Precisions, Point]:
    """Bisect the predicted loss for the smallest network that drops no more, then promote."""
    best = allocate_bits(problem, limits)
    good: tuple[Precisions, Point] = best.precisions, workshop.measure(best.precisions)
    lost = _drop(good[1])
    if lost > drop:
        raise BudgetError(
            f"budget drop: got {drop:g} points; the least found within the other budgets is "
            f"{lost:.4g} on {good[1].quality.samples} held-out samples: raise it to that, widen "
            "the other budgets, or try --effort default"
        )
    cheapest = allocate_bits(problem, limits, "size_bytes")
    low, high = max(best.loss, 1e-9), max(cheapest.loss, 1e-9)
    bad: Allocation | None = None
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        trial = allocate_bits(problem, {**limits, LOSS: middle}, "size_bytes")
        point = workshop.measure(trial.precisions)
        if _drop(point) <= drop:
            low, good = middle, (trial.precisions, point)
        else:
            high, bad = middle, trial
    if bad is None:
        return good
    steps = promote(workshop, problem, bad.precisions, limits, lambda p: _drop(p) <= drop)
    last = steps[-1] if steps else None
    if last is not None and _drop(last[1]) <= drop and last[1].size_bytes < good[1].size_bytes:
        return last
    return good


def _drop(point: Point) -> float:
    if point.quality.drop is None:
        raise UsageError(
            "--max-drop: the model's first output has no classes to agree on; give --metric "
            "file.py:function"
        )
    return point.quality.drop
