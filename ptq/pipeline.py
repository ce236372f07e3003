"""The one way through: the only file that knows the order of the stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ptq.execute.float import FloatRunner
from ptq.histogram import Histogram
from ptq.integer.lower import lower
from ptq.integer.outline import Outline, outline
from ptq.integer.program import Program
from ptq.model import load
from ptq.passes.choose_activation_grids import ChooseActivationGrids
from ptq.passes.collect_ranges import collect
from ptq.passes.context import Batch, Context, Progress
from ptq.passes.correct_bias import CorrectBias
from ptq.passes.learn_rounding import LearnRounding
from ptq.passes.prepare import prepare
from ptq.passes.quantize_weights import QuantizeWeights
from ptq.passes.search_exponent import SearchExponent
from ptq.plan import Plan
from ptq.recipe import Effort, Recipe
from ptq.report import artifact
from ptq.report.summary import Report, make_report
from ptq.targets import TARGETS
from ptq.targets.names import code_names

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger("ptq")

Stage = Callable[[Context, Plan], Plan]


@dataclass(frozen=True)
class Result:
    """A quantised model and everything that was decided on the way.

    model: what the target made of the program. float_model: the prepared float model.
    samples: calibration samples that were read. preprocess: what was applied to them.
    source: the float model's file, if it came from one.
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


def quantize(
    model: Any,
    calib: Any = None,
    recipe: Recipe | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> Result:
    """Quantise a trained network on a few unlabelled samples.

    model: path, bytes, ModelProto, onnx_ir.Model, nn.Module, fx.GraphModule or ExportedProgram.
    calib: anything `open_calibration` reads, or None for synthetic samples. progress: called with
    every step of every stage; an exception raised in it cancels the run. example_inputs,
    dynamic_shapes: what torch.export traces a module on, see `ptq.from_torch`.

    Raises:
        ModelError: the model is invalid, unsafe, or not supported as asked.
        CalibrationError: the samples do not fit the model.
        RecipeError: a pattern that matches nothing.
    """
    run = begin(
        load(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes),
        calib,
        recipe or Recipe(),
        preprocess=preprocess,
        progress=progress,
    )
    source = Path(model) if isinstance(model, str | Path) else None
    return finish(run, make_plan(run.context), source)


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
) -> Run:
    """Prepare the model, decide what becomes integer, open the samples."""
    report = progress or _silent
    report(Progress("prepare", 0, None))
    float_model = prepare(model)
    sketch = outline(float_model, recipe)
    specs = input_specs(float_model)
    if preprocess is None and isinstance(calib, str | Path):
        preprocess = _guess(float_model, calib, specs, recipe.seed)
    samples = open_calibration(
        calib, specs, preprocess=preprocess, limit=recipe.samples, seed=recipe.seed
    )
    counted = _Counted(samples)
    context = Context(float_model, sketch, recipe, counted.batches, report, samples.samples)
    return Run(context, counted, preprocess, tuple(lint(samples, specs)))


def finish(run: Run, plan: Plan, source: Path | None = None) -> Result:
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
    )


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
    """Run the stages in order."""
    plan = Plan()
    for stage in STAGES:
        plan = stage(context, plan)
    return plan


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


def learn_rounding(context: Context, plan: Plan) -> Plan:
    """Gradient-based rounding, as much of it as the recipe's effort allows."""
    for stage in LEARNING[context.recipe.effort]:
        plan = stage(context, plan)
    return plan


LEARNING: dict[Effort, tuple[LearnRounding, ...]] = {
    "fast": (),
    "default": (LearnRounding(iterations=150),),
    "best": (
        LearnRounding(iterations=600),
        LearnRounding(iterations=100, lr=0.0, bias_lr=1e-3, whole=True),
    ),
}

STAGES: tuple[Stage, ...] = (
    choose_activations,
    SearchExponent(),
    QuantizeWeights(),
    correct_biases,
    learn_rounding,
)


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


__all__ = ["STAGES", "Result", "make_plan", "quantize"]
