"""Promote: give more bits to the layers that cost most, measured one by one in the real network.

Scores add up only while errors are small. From a network that is nearly good enough, each of the
layers that seem worst gets its next width alone, and the one that wins most per byte keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ptq.mixed.points import Point, Precisions, Workshop
from ptq.passes.allocate_bits import Choice, Option, Problem

SUSPECTS = 4
ROUNDS = 8


def promote(
    workshop: Workshop,
    problem: Problem,
    precisions: Precisions,
    limits: Mapping[str, float],
    good_enough: Callable[[Point], bool],
) -> list[tuple[Precisions, Point]]:
    """The networks on the way up, until one is good enough or nothing fits the limits any more.

    Only weight widths are raised: a tensor's width may be tied to others.
    """
    steps: list[tuple[Precisions, Point]] = []
    now, point = precisions, workshop.measure(precisions)
    while len(steps) < ROUNDS and not good_enough(point):
        trials = [
            (trial, workshop.measure(trial))
            for trial in _raised(problem, now)
            if all(problem.cost(name, trial) <= limit for name, limit in limits.items())
        ]
        if not trials:
            break
        before = point
        now, point = max(trials, key=lambda t: _gain_per_byte(before, t[1]))
        if point.quality.loss >= before.quality.loss:
            break
        steps.append((now, point))
    return steps


def _raised(problem: Problem, precisions: Precisions) -> list[Precisions]:
    """The allocation with one layer's weight at its next width, for the layers that lose most."""
    rises = []
    for choice in problem.choices:
        here, wider = _next(choice, precisions)
        if wider is not None:
            gain = here.loss - wider.loss
            rises.append((gain, choice.layer, wider.precision))
    worst = sorted(rises, key=lambda rise: -rise[0])[:SUSPECTS]
    return [{**precisions, layer: precision} for _, layer, precision in worst]


def _next(choice: Choice, precisions: Precisions) -> tuple[Option, Option | None]:
    said = precisions[choice.layer]
    same = [o for o in choice.options if o.precision.activation_bits == said.activation_bits]
    same.sort(key=lambda option: option.precision.weight_bits or math.inf)
    index = next(i for i, option in enumerate(same) if option.precision == said)
    return same[index], same[index + 1] if index + 1 < len(same) else None


def _gain_per_byte(before: Point, after: Point) -> float:
    gain = before.quality.loss - after.quality.loss
    return gain / max(after.size_bytes - before.size_bytes, 1)
