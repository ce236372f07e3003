"""Explore: the Pareto front over size, latency and accuracy, measured point by point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from scipy.stats import spearmanr

from ptq.amounts import amount, size
from ptq.errors import BudgetError, UsageError
from ptq.mixed.budgets import with_overhead
from ptq.mixed.points import Point, Precisions, Workshop
from ptq.passes.allocate_bits import allocate_bits, pareto_hull
from ptq.passes.context import Progress
from ptq.precision import Precision

SCHEMA_VERSION = 1
UNIFORM = (8, 4, 3, 2)


@dataclass(frozen=True)
class Exploration:
    """What was found.

    points: the hull of the predicted front, each measured. uniform: every layer alike, to compare.
    rank_correlation: Spearman's, of predicted and measured loss over the points.
    front: which of the points no other one beats in measured size and loss.
    """

    points: tuple[Point, ...]
    uniform: tuple[Point, ...]
    rank_correlation: float | None
    front: tuple[int, ...]
    schema_version: int = SCHEMA_VERSION


def explore(
    workshop: Workshop,
    count: int,
    report: Callable[[Progress], None],
    ahead: Callable[[Sequence[Precisions]], None] | None = None,
) -> Exploration:
    """Sweep the size from the least to the most, and measure the hull of the predicted front.

    ahead: measures points before they are asked for, such as several at a time.
    """
    problem = with_overhead(workshop)
    least = allocate_bits(problem, {}, "size_bytes").costs["size_bytes"]
    most = allocate_bits(problem, {}).costs["size_bytes"]
    swept = [
        allocate_bits(problem, {"size_bytes": limit}) for limit in np.linspace(least, most, count)
    ]
    unique = list({a.costs["size_bytes"]: a for a in swept}.values())
    hull = pareto_hull([(a.costs["size_bytes"], a.loss) for a in unique])
    widths = [b for b in UNIFORM if b in workshop.chooser.weight_widths]
    if ahead is not None:
        ahead([*(unique[i].precisions for i in hull), *(_uniform(workshop, b) for b in widths)])
    points, uniform = [], []
    for done, index in enumerate(hull, 1):
        points.append(workshop.measure(unique[index].precisions, f"mixed {done}"))
        report(Progress("points", done, len(hull) + len(widths)))
    for done, bits in enumerate(widths, 1):
        uniform.append(workshop.measure(_uniform(workshop, bits), f"uniform w{bits}"))
        report(Progress("points", len(hull) + done, len(hull) + len(widths)))
    return Exploration(tuple(points), tuple(uniform), _rank(points), _front(points))


def _uniform(workshop: Workshop, bits: int) -> Precisions:
    widest = max(workshop.chooser.activation_widths, default=None)
    edges = {u.name for u in workshop.study.context.outline.weighted if u.edge}
    return {
        choice.layer: Precision(bits, None if choice.layer in edges else widest)
        for choice in workshop.chooser.problem.choices
    }


def _rank(points: list[Point]) -> float | None:
    if len(points) < 3:
        return None
    found = spearmanr([p.predicted for p in points], [p.quality.loss for p in points])
    return float(found.statistic)


def _front(points: list[Point]) -> tuple[int, ...]:
    best, kept = np.inf, []
    for index in sorted(range(len(points)), key=lambda i: points[i].size_bytes):
        if points[index].quality.loss < best:
            best = points[index].quality.loss
            kept.append(index)
    return tuple(kept)


def pick(found: Exploration, wanted: str) -> Point:
    """The point that `knee`, `size=2MB` or `drop=0.5` describes.

    knee: farthest below the line between the ends of the measured front, log loss over size.

    Raises:
        UsageError: none of these. BudgetError: no point fits.
    """
    points = [found.points[i] for i in found.front]
    word, _, value = wanted.partition("=")
    if word == "knee" and not value:
        return points[_knee(points)]
    if word == "size" and value:
        limit = size(value)
        fits = [p for p in points if p.size_bytes <= limit]
        if not fits:
            raise BudgetError(
                f"--pick {wanted}: the smallest point has {points[0].size_bytes} bytes"
            )
        return fits[-1]
    if word == "drop" and value:
        limit = amount(value, {"": 1.0})
        near = [p for p in points if p.quality.drop is not None and p.quality.drop <= limit]
        if not near:
            drops = [p.quality.drop for p in points if p.quality.drop is not None]
            raise BudgetError(
                f"--pick {wanted}: the least drop of any point is {min(drops, default=np.nan):g}"
            )
        return near[0]
    raise UsageError(f"--pick {wanted}: wanted knee, size=2MB or drop=0.5")


def _knee(points: list[Point]) -> int:
    x = np.array([p.size_bytes for p in points], np.float64)
    y = np.log(np.array([max(p.quality.loss, 1e-9) for p in points]))
    if len(points) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return len(points) - 1
    x, y = (x - x[0]) / np.ptp(x), (y - y[-1]) / np.ptp(y)
    return int(np.argmin(x + y))


def save(found: Exploration, folder: Path) -> None:
    """Write explore.json and explore.png."""
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    (folder / "explore.json").write_bytes(text)
    _draw(found, folder / "explore.png")


def _draw(found: Exploration, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for points, style, label in (
        (found.points, "o", "mixed, measured"),
        (found.uniform, "s", "uniform, measured"),
    ):
        axes.plot([p.size_bytes / 1e3 for p in points], [p.quality.loss for p in points], style,
                  label=label)  # fmt: skip
    front = [found.points[i] for i in found.front]
    axes.plot([p.size_bytes / 1e3 for p in front], [p.quality.loss for p in front], "-", lw=1)
    predicted = [p.predicted for p in found.points]
    axes.plot([p.size_bytes / 1e3 for p in found.points], predicted, ":", label="predicted")
    for point in found.uniform:
        axes.annotate(point.name, (point.size_bytes / 1e3, point.quality.loss), fontsize=8)
    axes.set(xlabel="file, kB", ylabel="KL to the float model, nats", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
