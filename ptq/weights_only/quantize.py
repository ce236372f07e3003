"""`ptq.quantize_weights`: a float model in, the same with group-wise weights of few bits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ptq.calib_data import Calibration, Preprocess, input_specs, lint, open_calibration
from ptq.errors import RecipeError
from ptq.execute.trial import try_in_child
from ptq.model import load
from ptq.passes.context import Progress
from ptq.passes.prepare import tidy
from ptq.recipe import Recipe
from ptq.weights_only.deploy import Spool
from ptq.weights_only.products import Product, find_products
from ptq.weights_only.result import WeightsResult
from ptq.weights_only.round_product import Outcome
from ptq.weights_only.run import Network, blocks_of, round_alone, round_block
from ptq.weights_only.segments import cut
from ptq.weights_only.states import States

BATCH = 8
"""Samples that are run at a time."""


def quantize_weights(  # noqa: PLR0913 - an entry point; all but the first three by keyword
    model: Any,
    calib: Any = None,
    recipe: Recipe | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
    memory_bytes: int = 2 << 30,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
) -> WeightsResult:
    """Quantise the weights of matrix products, in groups; everything is computed in floats.

    model, calib, preprocess, progress, example_inputs, dynamic_shapes: as `ptq.quantize` takes
    them. Without samples weights are rounded by themselves. recipe: of weights only, such as
    `Recipe.preset("w4a16")`, the default. memory_bytes: what activations of all samples may take;
    more of them goes to temporary files. Of a model with external data no more than one layer's
    weights are in memory at a time.

    Raises:
        ModelError: the model is invalid, unsafe, or cannot be run.
        CalibrationError: the samples do not fit the model.
        RecipeError: the recipe is not of weights only, or nothing can be quantised.
    """
    recipe = _checked(recipe or Recipe.preset("w4a16"), calib)
    report = progress or (lambda step: None)
    report(Progress("prepare", 0, None))
    loaded = load(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    prepared = tidy(loaded)
    products, stays = find_products(prepared.graph, recipe)
    specs = input_specs(prepared)
    samples = (
        None
        if calib is None
        else open_calibration(
            calib, specs, preprocess=preprocess, limit=recipe.samples, seed=recipe.seed
        )
    )
    network = Network(prepared, prepared.clone(), recipe, Spool(), report)
    with threadpool_limits(1):  # sums of floats depend on the number of threads
        if samples is None or recipe.rounding != "gptq":
            found = round_alone(network, products)
        else:
            found = _round_all(network, products, samples, memory_bytes)
    source = Path(model) if isinstance(model, str | Path) else None
    return WeightsResult(
        network.deployed,
        prepared,
        recipe,
        products,
        stays,
        found,
        0 if samples is None else samples.samples or 0,
        preprocess,
        () if samples is None else tuple(lint(samples, specs)),
        source=source,
        calib=str(calib) if isinstance(calib, str | Path) else None,
        spool=network.spool,
    )


def _checked(recipe: Recipe, calib: Any) -> Recipe:
    if not recipe.weights_only:
        raise RecipeError(
            f"quantize_weights: got the recipe {recipe.precision}; wanted one of weights only, "
            "such as Recipe.preset('w4a16'), or use ptq.quantize"
        )
    alone = calib is None and recipe.rounding == "gptq"
    return recipe.replace(rounding="squant") if alone else recipe


def _round_all(
    network: Network, products: Sequence[Product], samples: Calibration, memory_bytes: int
) -> dict[str, Outcome]:
    """Round every product behind those before it."""
    try_in_child(network.model, next(samples.batches(1)))
    segments = cut(network.model.graph, products)
    found: dict[str, Outcome] = {}
    half = memory_bytes // 2
    with (
        States(samples.batches(BATCH), half) as exact,
        States(samples.batches(BATCH), half) as rounded,
    ):
        for block in blocks_of(segments):
            found |= round_block(network, block, exact, rounded)
            last = block[-1].products[-1].name
            network.report(Progress("round weights", len(found), len(products), last))
    return found
