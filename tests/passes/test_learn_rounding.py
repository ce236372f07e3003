"""Learned rounding: what it may change, what it must not, and that it helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ptq
from ptq.calib_data import input_specs, open_calibration
from ptq.integer.blocks import find_blocks
from ptq.integer.lower import lower
from ptq.integer.outline import outline
from ptq.integer.reference import Reference
from ptq.model import load
from ptq.passes.context import Context, Progress
from ptq.passes.learn_rounding import LearnRounding
from ptq.passes.prepare import prepare
from ptq.pipeline import make_plan
from ptq.plan import Plan
from ptq.recipe import Recipe
from tests.graphs import GraphBuilder, random_graph

DIGITS = Path(__file__).parents[2] / "calib_data"
SHORT = LearnRounding(iterations=40, batch=16, lr=2e-2)
RECIPE = Recipe(weight_bits=3, activation_bits=4, samples=64, effort="fast")


def context_of(model: Any, samples: Any, recipe: Recipe = RECIPE) -> Context:
    graph = prepare(load(model))
    calib = open_calibration(samples, input_specs(graph), limit=recipe.samples, seed=recipe.seed)
    silent = lambda progress: None  # noqa: E731
    return Context(graph, outline(graph, recipe), recipe, calib.batches, silent, calib.samples)


@pytest.fixture(scope="module")
def digits() -> tuple[Context, Plan]:
    context = context_of(DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz")
    return context, make_plan(context)


@pytest.fixture(scope="module")
def learned(digits: tuple[Context, Plan]) -> Plan:
    return SHORT(*digits)


def logits_error(context: Context, plan: Plan) -> float:
    """Squared error of the integer network's logits on samples that nothing was learned on."""
    from ptq.execute.float import FloatRunner

    x = np.load(DIGITS / "digits_eval.npz")["image"][:200]
    name = str(context.model.graph.outputs[0].name)
    wanted = FloatRunner(context.model, [name]).run({"image": x})[name]
    found = Reference(lower(context.model, context.outline, plan)).run({"image": x})[name]
    return float(np.square(wanted - found).sum())


def test_learning_lowers_the_error_on_unseen_samples(
    digits: tuple[Context, Plan], learned: Plan
) -> None:
    assert logits_error(digits[0], learned) < 0.9 * logits_error(*digits)


def test_whole_network_lowers_the_error_on_unseen_samples() -> None:
    # from nearest rounding, where there surely is something to gain in a few steps
    crude = RECIPE.replace(rounding="nearest", bias_correction=False)
    context = context_of(DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz", crude)
    plan = make_plan(context)
    whole = LearnRounding(iterations=60, whole=True, lr=0.0, bias_lr=1e-2)
    assert logits_error(context, whole(context, plan)) < 0.95 * logits_error(context, plan)


def test_scales_zero_points_and_activations_stay(
    digits: tuple[Context, Plan], learned: Plan
) -> None:
    plan = digits[1]
    assert learned.activations == plan.activations
    changed = 0
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(learned.weights[name].scale, weight.scale)
        np.testing.assert_array_equal(learned.weights[name].zero_point, weight.zero_point)
        codes = learned.weights[name].require_codes()
        assert codes.max() < weight.grid.size
        changed += int((codes != weight.require_codes()).sum())
    assert changed


def test_the_plan_lowers_to_the_integers_that_were_learned(
    digits: tuple[Context, Plan], learned: Plan
) -> None:
    from ptq.passes.learning.into_plan import with_steps
    from ptq.passes.learning.steps import block_steps

    context, plan = digits
    program = lower(context.model, context.outline, plan)
    rng = np.random.default_rng(0)
    for block in find_blocks(context.model, context.outline):
        before = block_steps(program, block).steps
        after = tuple(_perturbed(step, plan, rng) for step in before)
        again = lower(context.model, context.outline, with_steps(program, plan, before, after))
        by_name = {step.name: step for step in again.steps}
        for step in after:
            if hasattr(step, "weight"):
                np.testing.assert_array_equal(by_name[step.name].weight, step.weight)
                np.testing.assert_array_equal(by_name[step.name].bias, step.bias)


def _perturbed(step: Any, plan: Plan, rng: np.random.Generator) -> Any:
    """The step with random other codes of its grid, and another bias."""
    if not hasattr(step, "weight"):
        return step
    stored = plan.weights[step.name]
    codes = rng.integers(0, stored.grid.size, stored.require_codes().shape).astype(np.uint8)
    stored = replace(stored, codes=codes)
    weight = stored.decode().T if getattr(step, "transposed", False) else stored.decode()
    return replace(step, weight=weight, bias=step.bias + 5, stored=stored)


def test_same_seed_same_plan_whatever_the_threads_and_the_memory(
    digits: tuple[Context, Plan], learned: Plan, tmp_path: Path
) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = SHORT(replace(digits[0], memory_bytes=0), digits[1])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    learned.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_block_that_is_no_better_is_not_kept(digits: tuple[Context, Plan]) -> None:
    wild = LearnRounding(iterations=3, batch=16, lr=5.0, bias_lr=50.0, whole=True)
    assert wild(*digits) is digits[1]


def test_adaround_is_a_choice(digits: tuple[Context, Plan], learned: Plan) -> None:
    soft = replace(SHORT, variable="adaround", lr=0.1)(*digits)
    assert logits_error(digits[0], soft) < logits_error(*digits)


def test_progress_counts_to_its_total_and_names_the_block(digits: tuple[Context, Plan]) -> None:
    heard: list[Progress] = []
    LearnRounding(iterations=2, batch=8)(replace(digits[0], report=heard.append), digits[1])
    assert (heard[-1].done, heard[-1].total) == (len(heard), len(heard))
    assert "left" in heard[0].detail


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_learn_or_stay(seed: int) -> None:
    model, shapes = random_graph(seed)
    rng = np.random.default_rng(seed)
    samples = {n: rng.normal(size=(16, *s)).astype(np.float32) for n, s in shapes.items()}
    context = context_of(model, samples, Recipe(weight_bits=3, samples=16))
    plan = make_plan(context)
    after = LearnRounding(iterations=2, batch=4)(context, plan)
    assert after.weights.keys() == plan.weights.keys()
    lower(context.model, context.outline, after)


def test_dropped_quantisation_still_learns(digits: tuple[Context, Plan]) -> None:
    assert logits_error(digits[0], replace(SHORT, drop=0.5)(*digits)) < logits_error(*digits)


def test_an_operator_without_gradients_leaves_the_plan_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    b = GraphBuilder(np.random.default_rng(0))
    rois = b.constant(np.array([[0, 0, 0, 2, 2]], np.float32))
    y = b.node("Conv", ["x", b.weight(2, 2, 1, 1)])
    y = b.node("MaxRoiPool", [y, rois], pooled_shape=[1, 1])
    model = b.model({"x": (2, 3, 3)}, {y: (2, 1, 1)})
    samples = {"x": np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)}
    context = context_of(model, samples)
    plan = make_plan(context)
    assert SHORT(context, plan) is plan
    assert "MaxRoiPool" in caplog.text


def test_a_fixed_batch_size_is_no_obstacle() -> None:
    proto = onnx.load(DIGITS / "digits_cnn.onnx")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    context = context_of(proto, DIGITS / "digits_calib.npz")
    plan = make_plan(context)
    assert SHORT(context, plan) is not plan


def test_a_batch_size_in_the_arithmetic_leaves_the_plan_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    b = GraphBuilder(np.random.default_rng(0))
    y = b.node("MatMul", ["x", b.weight(6, 4)])
    y = b.node("Reshape", [y, b.constant(np.array([4, 2], np.int64))])
    y = b.node("MatMul", [y, b.weight(2, 3)])
    proto = b.model({"x": (6,)}, {y: (3,)})
    for value, rows in ((proto.graph.input[0], 2), (proto.graph.output[0], 4)):
        value.type.tensor_type.shape.dim[0].dim_value = rows
    samples = {"x": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)}
    context = context_of(proto, samples)
    plan = make_plan(context)
    assert SHORT(context, plan) is plan
    assert "several samples at a time" in caplog.text


@pytest.mark.slow
def test_effort_brings_the_integer_network_nearer_to_the_float_one() -> None:
    errors = {}
    for effort in ("fast", "default"):
        recipe = RECIPE.replace(effort=effort)
        result = ptq.quantize(DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz", recipe)
        samples = DIGITS / "digits_calib.npz"
        context = context_of(DIGITS / "digits_cnn.onnx", samples, recipe)
        errors[effort] = logits_error(context, result.plan)
    assert errors["default"] < 0.9 * errors["fast"]


@pytest.mark.slow
def test_codes_and_exponents_of_power_grids_are_learned_together() -> None:
    recipe = RECIPE.replace(grid="power", samples=32)
    context = context_of(DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz", recipe)
    plan = make_plan(context)
    how = replace(SHORT, learns=("codes", "bias", "exponents"), iterations=20, exponent_lr=2e-2)
    learned = how(context, plan)
    powers = {name: weight.grid.power for name, weight in plan.weights.items()}
    moved = {n for n, w in learned.weights.items() if w.grid.power != powers[n]}
    assert moved
    assert all(plan.weights[name].grid.bits == 3 for name in moved)
    assert logits_error(context, learned) < logits_error(context, plan)
