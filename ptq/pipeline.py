"""The one way through: the only file that knows the order of the stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from threadpoolctl import threadpool_limits

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
from ptq.checkpoints import Checkpoints, run_key
from ptq.execute.float import FloatRunner
from ptq.execute.trial import try_in_child
from ptq.histogram import Histogram
from ptq.integer.lower import lower
from ptq.integer.outline import Outline, outline
from ptq.integer.program import Program
from ptq.ladder import Step, climb
from ptq.model import load
from ptq.passes.balance_channels import balance_channels
from ptq.passes.batch_norm_statistics import batch_norm_statistics
from ptq.passes.choose_activation_grids import ChooseActivationGrids
from ptq.passes.collect_ranges import collect
from ptq.passes.context import Batch, Context, Progress
from ptq.passes.correct_bias import CorrectBias
from ptq.passes.distil_samples import DistilSamples, can_distil
from ptq.passes.learn_rounding import LearnRounding
from ptq.passes.prepare import prepare
from ptq.passes.quantize_weights import QuantizeWeights
from ptq.passes.search_exponent import SearchExponent
from ptq.plan import Plan
from ptq.recipe import Effort, Recipe
from ptq.report import artifact
from ptq.report.rungs import Rung
from ptq.report.summary import Report, make_report
from ptq.targets import TARGETS
from ptq.targets.names import code_names

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class Result:
    """A quantised model and everything that was decided on the way.

    model: what the target made of the program. float_model: the prepared float model.
    samples: calibration samples that were read. preprocess: what was applied to them.
    source: the float model's file, if it came from one. ladder: what each stage gained.
    calib: where the samples came from, if that was a path.
    """

    model: ir.Model
    float_model: ir.Model
    outline: Outline
    program: Program
    plan: Plan
    recipe: Recipe
    samples: int
    preprocess: Preprocess | None = None
    lints: tuple[Lint, ...] = ()
    source: Path | None = None
    ladder: tuple[Rung, ...] = ()
    calib: str | None = None

    @property
    def report(self) -> Report:
        """Sizes, precision, certificates and islands, layer by layer."""
        return make_report(self, self.source)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model, its manifest and its integer program; all of them or none.

        Raises:
            OutputError: `path` exists (without `force`), or cannot be written.
        """
        artifact.save(self, path, force=force, source=self.source)

    def as_module(self) -> torch.nn.Module:
        """The quantised network as a torch module: the same codes, and gradients to its inputs.

        Raises:
            UnsupportedModelError: a float island has an operator that runs in onnxruntime only.
        """
        from ptq.execute.differentiable.module import ProgramModule

        return ProgramModule(self.program)


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


def quantize(  # noqa: PLR0913 - the one entry point; all but the first three by keyword
    model: Any,
    calib: Any = None,
    recipe: Recipe | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
    how: RunOptions = DEFAULT_RUN,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> Result:
    """Quantise a trained network on a few unlabelled samples.

    model: path, bytes, ModelProto, onnx_ir.Model, nn.Module, fx.GraphModule or ExportedProgram.
    calib: anything `open_calibration` reads, or None for synthetic samples. progress: called with
    every step of every stage; an exception raised in it cancels the run. how: what does not change
    the result. example_inputs, dynamic_shapes: what torch.export traces a module on, see
    `ptq.from_torch`.

    Raises:
        ModelError: the model is invalid, unsafe, or not supported as asked.
        CalibrationError: the samples do not fit the model.
        RecipeError: a pattern that matches nothing.
    """
    started = begin(
        load(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes),
        calib,
        recipe or (Recipe() if calib is not None else Recipe().without_samples()),
        preprocess=preprocess,
        progress=progress,
        how=how,
    )
    source = Path(model) if isinstance(model, str | Path) else None
    with threadpool_limits(1):  # sums of floats depend on the number of threads
        plan, ladder = climb(started.context, steps_of(started.context.recipe))
    result = finish(started, plan, source, ladder)
    return replace(result, calib=str(calib) if isinstance(calib, str | Path) else None)


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
    float_model = prepare(model)
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
        for norm in balanced:
            _LOG.info("%s", norm)
    context = Context(
        float_model, sketch, recipe, counted.batches, report, samples.samples, how.memory_bytes,
        _checkpoints(how, float_model, recipe, counted),
    )  # fmt: skip
    return Run(context, counted, preprocess, tuple(lint(samples, specs)))


def finish(
    run: Run, plan: Plan, source: Path | None = None, ladder: tuple[Rung, ...] = ()
) -> Result:
    """Lower the plan and print the target."""
    context = run.context
    context.report(Progress("lower", 0, None))
    program = lower(context.model, context.outline, plan)
    return Result(
        TARGETS[context.recipe.target](program, io=context.recipe.io),
        context.model,
        context.outline,
        program,
        plan,
        context.recipe,
        run.counted.samples,
        run.preprocess,
        run.lints,
        source=source,
        ladder=ladder,
    )


def _checkpoints(
    how: RunOptions, model: ir.Model, recipe: Recipe, samples: _Counted
) -> Checkpoints | None:
    """Where the run keeps what it has finished; emptied unless it resumes."""
    if how.work is None:
        return None
    key = run_key(ir.to_proto(model).SerializeToString(), recipe, samples.batches(_HASHED))
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


def make_plan(context: Context) -> Plan:
    """Run the stages in order, and keep those that gain."""
    return climb(context, steps_of(context.recipe))[0]


def learn_rounding(context: Context, plan: Plan) -> Plan:
    """The stages that learn, from a plan that others made."""
    return climb(context, LEARNED[context.recipe.effort], plan)[0]


def choose_activations(context: Context, plan: Plan) -> Plan:
    """Ranges of all activations in one streamed pass, then their grids."""
    return ChooseActivationGrids()(context, plan, collect_histograms(context))


def collect_histograms(context: Context) -> dict[str, Histogram]:
    """Histograms of all activations, whatever widths they will have."""
    sites = context.outline.sites.values()
    names = [site.name for site in sites if site.source != "constant" and not site.fixed]
    runner = FloatRunner(context.model, names)
    size = context.batch_size(names)

    def report(done: int) -> None:
        context.report(Progress("collect ranges", done, context.batches_of(size)))

    histograms = collect(runner, _Batches(context, size), names, report)
    runner.close()
    return histograms


def correct_biases(context: Context, plan: Plan) -> Plan:
    """Bias correction on the integer network itself."""
    if not context.recipe.bias_correction or not context.outline.weighted:
        return plan

    def deploy(current: Plan) -> tuple[ir.Model, dict[str, str]]:
        program = lower(context.model, context.outline, current)
        return TARGETS["onnx"](program, io="float"), code_names(program, "float")

    return CorrectBias()(context, plan, deploy)


def try_power_grids(context: Context, plan: Plan) -> Plan:
    """Power grids in every layer whose output they cost less than uniform ones."""
    plan = SearchExponent(family="power")(context, plan)
    return correct_biases(context, QuantizeWeights()(context, plan))


FITTED: tuple[Step, ...] = (
    Step("ranges", choose_activations, judged=False),
    Step("exponents", SearchExponent(), judged=False),
    Step("second-order rounding", QuantizeWeights(), judged=False),
    Step("bias correction", correct_biases),
)

LEARNED: dict[Effort, tuple[Step, ...]] = {
    "fast": (),
    "default": (Step("learned blocks", LearnRounding(iterations=150)),),
    "best": (
        Step("learned blocks", LearnRounding(iterations=600)),
        Step("learned biases", LearnRounding(("bias",), 100, bias_lr=1e-3, whole=True)),
    ),
}


def steps_of(recipe: Recipe) -> tuple[Step, ...]:
    """The stages of a recipe, in order."""
    other = (Step("power grids", try_power_grids),) if recipe.grid == "auto" else ()
    return (*FITTED, *other, *LEARNED[recipe.effort])


@dataclass(frozen=True)
class _Batches:
    """The samples as a re-iterable of batches."""

    context: Context
    size: int

    def __iter__(self) -> Iterator[Batch]:
        return self.context.batches(self.size)


@dataclass
class _Counted:
    """Counts the samples of a pass, for the manifest."""

    calibration: Calibration
    samples: int = 0

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of one pass over the samples."""
        seen = 0
        for batch in self.calibration.batches(size):
            seen += len(next(iter(batch.values())))
            self.samples = max(self.samples, seen)
            yield batch


def _silent(progress: Progress) -> None:
    _LOG.debug("%s %s/%s", progress.stage, progress.done, progress.total)


__all__ = ["Result", "RunOptions", "make_plan", "quantize", "steps_of"]
