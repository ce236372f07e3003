"""Measure points in several processes, each on its share of the CPUs.

The processes hand nothing back: a measured point is a file in the work folder, where the next one
who asks finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ptq.calib_data import Preprocess
from ptq.errors import UsageError
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.mixed.points import Precisions
from ptq.passes.context import Progress
from ptq.recipe import Recipe
from ptq.report.cpu import pinned
from ptq.report.session import cpu_threads


@dataclass(frozen=True)
class Order:
    """What a process opens: files only, because nothing else crosses to it."""

    model: Path
    calib: str | None
    recipe: Recipe
    options: Options
    preprocess: Preprocess | None


def order_of(
    model: Any, calib: Any, recipe: Recipe, options: Options, preprocess: Preprocess | None
) -> Order:
    """The order, if everything in it is a file.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(model, str | Path) or not isinstance(calib, str | Path | None):
        raise UsageError("several jobs: the model and the samples must be files: jobs=1")
    data = None if calib is None else str(calib)
    return Order(Path(model), data, recipe, options, preprocess)


def check_jobs(jobs: int, timed: bool) -> None:
    """Refuse what cannot be measured at a time.

    Raises:
        UsageError: times wanted of processes that disturb each other, or more jobs than CPUs.
    """
    if jobs > 1 and timed:
        raise UsageError(
            f"{jobs} jobs: points that are measured at the same time cannot be timed: --no-latency"
        )
    if jobs > cpu_threads():
        raise UsageError(f"{jobs} jobs: this process may use {cpu_threads()} CPUs")


def measure_ahead(
    order: Order, points: Sequence[Precisions], jobs: int, report: Callable[[Progress], None]
) -> None:
    """Measure all points, `jobs` at a time. report: an exception raised in it cancels the others.

    Raises:
        PtqError: as `Workshop.measure`.
    """
    shares = _shares(jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_measure, order, points[k::jobs], share) for k, share in enumerate(shares)
        ]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                report(Progress("points in parallel", done, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure(order: Order, points: Sequence[Precisions], cpus: Sequence[int]) -> None:
    with pinned(cpus):
        workshop = open_workshop(
            order.model, order.calib, order.recipe, order.options, preprocess=order.preprocess
        )
        for precisions in points:
            workshop.measure(precisions)


def _shares(jobs: int) -> list[list[int]]:
    """CPUs by job."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [cpus[k::jobs] for k in range(jobs)]
