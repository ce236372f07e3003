"""The one way through: the only file that knows the order of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from ptq.calib_data import Preprocess
from ptq.errors import RecipeError
from ptq.execute.float import FloatRunner
from ptq.histogram import Histogram
from ptq.integer.lower import lower
from ptq.ladder import Step, climb
from ptq.model import load
from ptq.opening import DEFAULT_RUN, Run, RunOptions, begin
from ptq.passes.choose_activation_grids import ChooseActivationGrids
from ptq.passes.collect_ranges import collect
from ptq.passes.context import Batch, Context, Progress
from ptq.passes.correct_bias import CorrectBias
from ptq.passes.learn_rounding import Kind, LearnRounding
from ptq.passes.quantize_weights import QuantizeWeights
from ptq.passes.search_exponent import SearchExponent
from ptq.plan import Plan
from ptq.recipe import Effort, Recipe
from ptq.report.rungs import Rung
from ptq.result import Result
from ptq.targets import TARGETS
from ptq.targets.names import code_names


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
        RecipeError: a pattern that matches nothing, or a recipe of weights only.
    """
    if recipe is not None and recipe.weights_only:
        raise RecipeError(
            f"quantize: got a recipe of weights only ({recipe.precision}); wanted one of an "
            "integer network: use ptq.quantize_weights, which gives a float one"
        )
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

LEARNS: tuple[Kind, ...] = ("codes", "bias", "steps", "scales")

DOUBT = 1.0
"""Standard errors for what learns: each of its blocks was judged by its own error already."""

LEARNED: dict[Effort, tuple[Step, ...]] = {
    "fast": (),
    "default": (Step("learned blocks", LearnRounding(LEARNS, iterations=150), doubt=DOUBT),),
    "best": (
        Step("learned blocks", LearnRounding(LEARNS, iterations=600, drop=0.25), doubt=DOUBT),
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


__all__ = ["make_plan", "quantize", "steps_of"]
