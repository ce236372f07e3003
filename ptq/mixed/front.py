"""The Pareto front of a model: the one call that goes all the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ptq.calib_data import Preprocess
from ptq.mixed.explore import Exploration, explore, save
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.mixed.parallel import check_jobs, measure_ahead, order_of
from ptq.passes.context import Progress
from ptq.recipe import Recipe


@dataclass(frozen=True)
class ExploreOptions:
    """How to explore.

    folder: for explore.json, explore.png, and the work to go on from. points: how many sizes are
    tried; the hull of them is measured. activation_widths: none leaves activations as the recipe
    says. metric: file.py:function that measures drops. timed: time every point. jobs: points
    measured at a time, in processes of their own that begin by importing the caller's main module.
    """

    folder: Path
    points: int = 16
    activation_widths: Sequence[int] = ()
    metric: str | None = None
    timed: bool = True
    jobs: int = 1


def explore_model(
    model: Any,
    calib: Any,
    recipe: Recipe,
    options: ExploreOptions,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Exploration:
    """Measure the front of size, latency and accuracy; called again, it goes on where it stopped.

    The points are measured on a quarter of the samples that they were not calibrated on. A point's
    `precision_map` in the recipe makes that network of all samples. progress: an exception raised
    in it cancels the run.

    Raises:
        UsageError: the recipe has a precision map already, a metric cannot be read, or several
            jobs with times, or with a model or samples that are not files.
        ModelError, CalibrationError: as `ptq.quantize`.
    """
    check_jobs(options.jobs, options.timed)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Options(
        options.folder / "work", options.activation_widths, options.metric, options.timed
    )
    report, ahead = progress or _silent, None
    if options.jobs > 1:
        order = order_of(model, calib, recipe, work, preprocess)
        ahead = partial(measure_ahead, order, jobs=options.jobs, report=report)
    workshop = open_workshop(model, calib, recipe, work, preprocess=preprocess, progress=progress)
    found = explore(workshop, options.points, report, ahead)
    save(found, options.folder)
    return found


def _silent(progress: Progress) -> None:
    pass
