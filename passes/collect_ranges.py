"""Collect what values the float model's tensors take: one histogram a tensor, in one pass.

No activation is stored, so memory does not grow with the number of samples. Every range method
(`choose_range`: minmax, percentile, entropy, mse) reads the same histogram.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ptq.errors import CalibrationError
from ptq.histogram import Histogram
from ptq.ranges import METHODS, choose_range

__all__ = ["METHODS", "choose_range", "collect"]

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Progress = Callable[[int], None]
"""Called with the number of batches done so far (over all groups of tensors)."""


class Runner(Protocol):
    """Runs a batch and returns the tapped tensors; `ptq.execute.float.FloatRunner` is one."""

    def split(self, batch: Batch) -> Iterator[Self]:
        """Runners that together tap the same tensors, each within the memory budget."""
        ...

    def run(self, batch: Batch) -> dict[str, Array]:
        """The tapped tensors by name."""
        ...


def collect(
    runner: Runner,
    batches: Iterable[Batch],
    names: Sequence[str],
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Histogram of every tensor in `names` over all batches.

    batches: read once a group of tensors; one group unless the tensors of a batch exceed the
        runner's memory budget, so it should be re-iterable (a Calibration is).

    Raises:
        CalibrationError: NaN in a tensor, no batches, or more groups than an iterator can serve.
    """
    histograms = {name: Histogram() for name in names}
    done = 0
    for part, stream in _passes(runner, batches):
        for index, batch in enumerate(stream):
            for name, x in part.run(batch).items():
                if name in histograms:
                    _update(histograms[name], x, name, index)
            done += 1
            if progress is not None:
                progress(done)
    return histograms


def _passes(runner: Runner, batches: Iterable[Batch]) -> Iterator[tuple[Runner, Iterator[Batch]]]:
    """Each part of the runner with the batches from the beginning."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise CalibrationError("calibration: no samples; wanted at least one batch: give more data")
    for index, part in enumerate(runner.split(first)):
        if index and iterator is batches:
            raise CalibrationError(
                "calibration: the tensors exceed the memory budget, and the samples can be read"
                " only once; give a re-iterable source, fewer tensors or smaller batches"
            )
        yield part, itertools.chain([first], iterator) if index == 0 else iter(batches)


def _update(histogram: Histogram, x: Array, name: str, index: int) -> None:
    try:
        histogram.update(np.asarray(x))
    except CalibrationError as error:
        raise CalibrationError(
            f"{name}: batch {index}: {error}; the float model itself computes NaN on this sample:"
            " repair the model, or leave the sample out"
        ) from error
