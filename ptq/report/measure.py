"""Measuring a fresh result: outputs, accuracy and latency of the float and the integer model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq.calib_data import InputSpec, Preprocess, input_specs, labelled, open_calibration
from ptq.errors import CalibrationError
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.comparison import Labelled, compare
from ptq.report.session import Batch, open_session
from ptq.report.summary import Deployed, Report

_BATCH = 16


@dataclass(frozen=True)
class Samples:
    """Samples to measure on.

    evaluation: labelled (or not) samples, all of which are used; without it `samples` of `calib`.
    """

    calib: Any = None
    evaluation: Path | None = None
    preprocess: Preprocess | None = None
    samples: int = 64
    seed: int = 0

    @property
    def title(self) -> str:
        """What the report calls them."""
        if self.evaluation is not None:
            return str(self.evaluation)
        return "no data (invented samples)" if self.calib is None else "the calibration data"

    def batches(self, inputs: Sequence[InputSpec]) -> Iterator[Labelled]:
        """(batch, labels or None) over the samples.

        Raises:
            CalibrationError: a sample that does not fit the model.
        """
        if self.evaluation is not None:
            return evaluation_batches(self.evaluation, inputs, self.preprocess)
        return self._unlabelled(self.calib, inputs)

    def _unlabelled(self, source: Any, inputs: Sequence[InputSpec]) -> Iterator[Labelled]:
        samples = open_calibration(
            source, inputs, preprocess=self.preprocess, limit=self.samples, seed=self.seed
        )
        return ((batch, None) for batch in samples.batches(_BATCH))


def evaluation_batches(
    path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> Iterator[Labelled]:
    """The samples with their labels; without, if the data has none.

    Raises:
        CalibrationError: a sample that does not fit the model.
    """
    pairs = labelled(path, inputs, preprocess, batch_size=_BATCH)
    try:
        first = next(pairs)
    except CalibrationError:
        samples = open_calibration(path, inputs, preprocess=preprocess)
        return ((batch, None) for batch in samples.batches(_BATCH))
    return itertools.chain([first], pairs)


def measure(
    report: Report,
    result: Deployed,
    data: Samples,
    source: Path | None,
    progress: Callable[[str, int, int | None], None],
) -> Report:
    """The report with outputs, accuracy and latency filled in.

    source: the float model's file; None runs the prepared one. progress: stage, done, total.

    Raises:
        UnsupportedModelError: onnxruntime does not load one of the models.
        CalibrationError: the data does not fit them.
    """
    inputs = input_specs(result.float_model)
    first = open_session(source or result.float_model, name="float")
    second = open_session(result.model, name="integer")
    batches = data.batches(inputs)
    head = next(batches)
    found = compare(
        first, second, itertools.chain([head], batches), lambda n: progress("evaluate", n, None)
    )
    one = first_rows(head[0], inputs, 1)
    options = BenchOptions(seconds=2.0)
    latency = bench(
        {"float": first, "integer": second}, one, options, lambda n: progress("latency", n, None)
    )
    return replace(report, comparison=found, latency=latency, measured_on=data.title)


def first_rows(batch: Batch, inputs: Sequence[InputSpec], rows: int) -> Batch:
    """The first samples of a batch, where every input has a free batch dimension."""
    free = all(spec.rank > 0 and spec.shape[0] is None for spec in inputs)
    return {name: x[:rows] for name, x in batch.items()} if free else batch
