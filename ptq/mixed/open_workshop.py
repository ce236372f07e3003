"""Open a workshop: from a model, samples and a recipe to what allocations are made in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq.calib_data import Preprocess
from ptq.errors import UsageError
from ptq.mixed.choose import WEIGHT_WIDTHS, Chooser
from ptq.mixed.metric import load_metric
from ptq.mixed.points import Judge, Workshop
from ptq.mixed.study import open_study
from ptq.passes.context import Progress
from ptq.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """How to work.

    folder: where scores, rounded weights and measured points are kept. activation_widths: none
    leaves activations as the recipe says. metric: file.py:function. timed: time every point.
    """

    folder: Path
    activation_widths: Sequence[int] = ()
    metric: str | None = None
    timed: bool = False


def open_workshop(
    model: Any,
    calib: Any,
    recipe: Recipe,
    options: Options,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Workshop:
    """Read the model and the samples, and set some samples apart to measure on.

    Rounding is in closed form, whatever the recipe's effort is: points are many. With the grids
    'power' and 'auto' every width of a layer has its best power grid, or the better of that and
    the uniform one; with any other, uniform ones.

    Raises:
        UsageError: the recipe has a precision map already, or a metric that cannot be read.
        ModelError, CalibrationError: as `ptq.quantize`.
    """
    if recipe.precision_map:
        raise UsageError("a precision map and a budget contradict each other; give one of them")
    measure = None if options.metric is None else load_metric(options.metric)
    study = open_study(
        model, calib, recipe.replace(effort="fast"), options.folder,
        preprocess=preprocess, progress=progress,
    )  # fmt: skip
    if not study.context.outline.weighted:
        raise UsageError("no layer with a weight is quantised: there is nothing to allocate")
    chooser = Chooser(study, WEIGHT_WIDTHS, tuple(options.activation_widths))
    return Workshop(chooser, Judge(study, measure), options.timed)
