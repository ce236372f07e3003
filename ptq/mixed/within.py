"""Quantise within budgets: the one call that goes all the way."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ptq.calib_data import Preprocess
from ptq.compilation import check_target
from ptq.mixed.budgets import Budgets, within
from ptq.mixed.choose import ACTIVATION_WIDTHS
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.opening import DEFAULT_RUN, RunOptions
from ptq.passes.context import Progress
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.result import Result

_LOG = logging.getLogger("ptq")


def quantize_within(  # noqa: PLR0913 - `ptq.quantize` with budgets
    model: Any,
    calib: Any,
    recipe: Recipe,
    budgets: Budgets,
    *,
    folder: Path | None = None,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
    how: RunOptions = DEFAULT_RUN,
) -> Result:
    """Quantise with the widths that lose least within the budgets.

    The widths are chosen with closed-form rounding on three quarters of the samples, and measured
    on the others; the network is then made as the recipe says on all of them, so that its manifest
    makes it again. Activations have the recipe's width, unless bit operations are bounded.
    folder: where scores, rounded weights and measured points are kept; None keeps nothing.

    Raises:
        BudgetError: nothing fits; says which budget binds and the nearest value that fits.
        ModelError, CalibrationError, RecipeError: as `ptq.quantize`.
    """
    if budgets.latency_on is not None:
        recipe = check_target(budgets.latency_on, recipe)
    widths = () if budgets.bops is None else ACTIVATION_WIDTHS
    with _folder(folder) as work:
        workshop = open_workshop(
            model, calib, recipe, Options(work, widths, budgets.metric),
            preprocess=preprocess, progress=progress,
        )  # fmt: skip
        _, point = within(workshop, budgets)
    quality = point.quality
    _LOG.info(
        "%.3f average weight bits, %d bytes; on %d held-out samples: KL %.4g nats, drop %s",
        point.average_bits, point.size_bytes, quality.samples, quality.loss, quality.drop,
    )  # fmt: skip
    return quantize(
        model,
        calib,
        recipe.replace(precision_map=point.precision_map),
        preprocess=workshop.study.run.preprocess,
        progress=progress,
        how=how,
    )


@contextlib.contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ptq-mixed-") as temporary:
        yield Path(temporary)
