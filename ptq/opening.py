"""Open a run: the prepared model, what becomes integer, and the samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ptq.calib_data import (
    Calibration,
    InputSpec,
    Lint,
    Preprocess,
    guess_preprocess,
    input_specs,
    lint,
    open_calibration,
)
from ptq.calib_data.spec import samples_in
from ptq.checkpoints import Checkpoints, run_key
from ptq.execute.float import FloatRunner
from ptq.execute.trial import try_in_child
from ptq.integer.outline import outline
from ptq.passes.balance_channels import balance_channels
from ptq.passes.batch_norm_statistics import batch_norm_statistics
from ptq.passes.context import Batch, Context, Progress
from ptq.passes.distil_samples import DistilSamples, can_distil
from ptq.passes.prepare import prepare
from ptq.recipe import Recipe

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; none of it changes the result.

    work: a folder for what is finished, so that an interrupted run can be resumed; None keeps
        nothing. It is left there: whoever saves the result removes it.
    resume: take up what `work` has of the same run.
    memory_bytes: what tensors of all samples may take; more of them goes to temporary files.
    """

    work: str | Path | None = None
    resume: bool = False
    memory_bytes: int = 2 << 30


DEFAULT_RUN = RunOptions()
_HASHED = 32
DISTILLED_BATCH = 32


@dataclass(frozen=True)
class Run:
    """What is read once: the prepared model and the samples, with what is odd about them."""

    context: Context
    counted: _Counted
    preprocess: Preprocess | None
    lints: tuple[Lint, ...]


def begin(
    model: ir.Model,
    calib: Any,
    recipe: Recipe,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
    how: RunOptions = DEFAULT_RUN,
) -> Run:
    """Prepare the model, decide what becomes integer, open the samples."""
    report = progress or _silent
    report(Progress("prepare", 0, None))
    float_model = prepare(model, input_shapes=recipe.input_shapes)
    sketch = outline(float_model, recipe)
    specs = input_specs(float_model)
    if preprocess is None and isinstance(calib, str | Path):
        preprocess = _guess(float_model, calib, specs, recipe.seed)
    if calib is None:
        calib = _distilled(float_model, model, specs, recipe, report)
    samples = open_calibration(
        calib, specs, preprocess=preprocess, limit=recipe.samples, seed=recipe.seed
    )
    for batch in islice(samples.batches(1), 1):
        try_in_child(float_model, batch)
    counted = _Counted(samples)
    if recipe.balance:
        report(Progress("balance channels", 0, None))
        bits = recipe.weight_bits, recipe.activation_bits
        float_model, balanced = balance_channels(float_model, counted.batches, *bits)
        sketch = outline(float_model, recipe) if balanced else sketch
        for source in balanced:
            _LOG.info("%s", source)
    context = Context(
        float_model, sketch, recipe, counted.batches, report, samples.samples, how.memory_bytes,
        _checkpoints(how, float_model, recipe, counted),
    )  # fmt: skip
    return Run(context, counted, preprocess, tuple(lint(samples, specs)))


def _checkpoints(
    how: RunOptions, model: ir.Model, recipe: Recipe, samples: _Counted
) -> Checkpoints | None:
    """Where the run keeps what it has finished; emptied unless it resumes."""
    if how.work is None:
        return None
    key = run_key(model, recipe, samples.batches(_HASHED))
    checkpoints = Checkpoints(Path(how.work), key)
    if not how.resume:
        checkpoints.clear()
    return checkpoints


def _distilled(
    model: ir.Model,
    loaded: ir.Model,
    specs: Sequence[InputSpec],
    recipe: Recipe,
    report: Callable[[Progress], None],
) -> list[Batch] | None:
    """Samples that match the loaded model's batch norm statistics; None if it has none to match."""
    statistics = can_distil(model, batch_norm_statistics(loaded))
    if not statistics:
        return None
    start = open_calibration(None, specs, limit=recipe.samples, seed=recipe.seed)
    _LOG.warning("invented samples are fitted to the statistics of %s batch norms", len(statistics))
    return DistilSamples()(model, statistics, list(start.batches(DISTILLED_BATCH)), report)


def _guess(
    model: ir.Model, source: str | Path, specs: Sequence[InputSpec], seed: int
) -> Preprocess | None:
    """Raw images and no word about their preprocessing: try the usual ones on the model."""
    runner = FloatRunner(model, [str(model.graph.outputs[0].name)])

    def predict(batch: Batch) -> Any:
        return next(iter(runner.run(batch).values()))

    guess = guess_preprocess(predict, source, specs, seed=seed)
    runner.close()
    if guess is None:
        return None
    _LOG.warning(
        "no --preprocess given: '%s' fits this model best (scores %s); pass it to be sure",
        guess.preset,
        {name: round(score, 2) for name, score in guess.scores.items()},
    )
    return guess.preprocess


@dataclass
class _Counted:
    """Counts the samples of a pass, for the manifest."""

    calibration: Calibration
    samples: int = 0

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of one pass over the samples."""
        seen = 0
        for batch in self.calibration.batches(size):
            seen += samples_in(batch, self.calibration.inputs)
            self.samples = max(self.samples, seen)
            yield batch


def _silent(progress: Progress) -> None:
    _LOG.debug("%s %s/%s", progress.stage, progress.done, progress.total)
