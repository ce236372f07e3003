"""Every choice of learned rounding: losses, optimizers, variables, and what moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptq.calib_data import input_specs, open_calibration
from ptq.integer.blocks import find_blocks, whole_network
from ptq.integer.lower import lower
from ptq.integer.outline import outline
from ptq.integer.reference import Reference
from ptq.model import load
from ptq.passes.context import Context
from ptq.passes.learn_rounding import LearnRounding
from ptq.passes.learning.fisher import fisher_diagonals
from ptq.passes.learning.flexround import FlexRound
from ptq.passes.learning.into_plan import with_scales
from ptq.passes.learning.layers import learnable_layers
from ptq.passes.learning.learned import Learned
from ptq.passes.learning.losses import divergence, fisher_error, squared_error
from ptq.passes.learning.optimizers import OPTIMIZERS
from ptq.passes.learning.samples import Layout, SampleStore
from ptq.passes.learning.scales import Scales, learnable_sites
from ptq.passes.learning.steps import block_steps
from ptq.passes.prepare import prepare
from ptq.passes.quantize_weights import QuantizeWeights
from ptq.pipeline import FITTED
from ptq.plan import Plan, WeightPlan
from ptq.recipe import Recipe
from tests.conv_net import conv_net

CPU = torch.device("cpu")
RECIPE = Recipe(
    weight_bits=3, activation_bits=4, activation_grid="uniform", samples=48, effort="fast"
)
QUICK = LearnRounding(iterations=25, batch=8, lr=3e-2, bias_lr=1e-2)


@pytest.fixture(scope="module")
def net() -> tuple[Context, Plan]:
    graph = prepare(load(conv_net()))
    x = np.random.default_rng(1).normal(size=(48, 2, 6, 6)).astype(np.float32)
    calib = open_calibration({"x": x}, input_specs(graph), limit=48)
    silent = lambda progress: None  # noqa: E731
    context = Context(graph, outline(graph, RECIPE), RECIPE, calib.batches, silent, calib.samples)
    plan = Plan()
    for step in FITTED:
        plan = step.stage(context, plan)
    return context, plan


def error(context: Context, plan: Plan) -> float:
    """Squared error of the logits on other samples."""
    from ptq.execute.float import FloatRunner

    x = np.random.default_rng(2).normal(size=(64, 2, 6, 6)).astype(np.float32)
    name = str(context.model.graph.outputs[0].name)
    wanted = FloatRunner(context.model, [name]).run({"x": x})[name]
    found = Reference(lower(context.model, context.outline, plan)).run({"x": x})[name]
    return float(np.square(wanted - found).sum())


CHOICES: dict[str, dict[str, Any]] = {
    "fisher": {"loss": "fisher"},
    "kl": {"loss": "kl", "whole": True},
    "radam": {"optimizer": "radam", "lr": 0.1, "bias_lr": 3e-2},
    "adamp": {"optimizer": "adamp"},
    "signsgd": {"optimizer": "signsgd", "bias_lr": 3e-2},
    "flexround": {"variable": "flexround", "lr": 2e-2},
    "adaround": {"variable": "adaround", "lr": 0.3, "bias_lr": 3e-2},
    "steps": {"learns": ("bias", "steps"), "scale_lr": 3e-2, "whole": True},
    "scales": {"learns": ("codes", "bias", "scales"), "scale_lr": 1e-2},
}


@pytest.fixture(scope="module")
def crude(net: tuple[Context, Plan]) -> Plan:
    """Narrow steps twice too large, biases and a third of the codes off: there is much to gain."""
    context, plan = net
    wide = {
        name: replace(grid, scale=np.float32(2 * grid.scale))
        for name, grid in plan.activations.items()
        if grid.grid.bits < 8
    }
    plan = QuantizeWeights()(context, plan.with_activations(wide))
    plan = plan.with_weights({name: jostled(weight) for name, weight in plan.weights.items()})
    return plan.with_biases({name: bias + 0.05 for name, bias in plan.biases.items()})


def jostled(weight: WeightPlan) -> WeightPlan:
    """A third of the codes of a narrow weight one up or down."""
    codes = weight.require_codes().astype(int)
    if weight.grid.bits == 8:
        return weight
    moves = np.random.default_rng(3).choice([-1, 0, 0, 0, 0, 1], codes.shape)
    return replace(weight, codes=np.clip(codes + moves, 0, weight.grid.size - 1).astype(np.uint8))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_changes_the_plan_and_gains(
    net: tuple[Context, Plan], crude: Plan, choice: str
) -> None:
    learned = replace(QUICK, **CHOICES[choice])(net[0], crude)
    assert learned is not crude
    assert error(net[0], learned) < 0.9 * error(net[0], crude)


def test_what_does_not_learn_stays(net: tuple[Context, Plan], crude: Plan) -> None:
    biases = replace(QUICK, learns=("bias",))(net[0], crude)
    codes = replace(QUICK, learns=("codes",))(net[0], crude)
    for name, weight in crude.weights.items():
        np.testing.assert_array_equal(biases.weights[name].codes, weight.require_codes())
    before, after = (lower(net[0].model, net[0].outline, plan).steps for plan in (crude, codes))
    for old, new in zip(before, after, strict=True):
        if hasattr(old, "bias"):
            np.testing.assert_array_equal(old.bias, new.bias)  # type: ignore[union-attr]
    assert any((codes.weights[n].codes != w.codes).any() for n, w in crude.weights.items())
    assert any((biases.biases[n] != b).any() for n, b in crude.biases.items())


def test_eight_bit_weights_keep_their_codes(net: tuple[Context, Plan]) -> None:
    context, plan = net
    learned = replace(QUICK, lr=0.5)(context, plan)
    wide = [name for name, weight in plan.weights.items() if weight.grid.bits == 8]
    assert len(wide) == 2
    for name in wide:
        np.testing.assert_array_equal(learned.weights[name].codes, plan.weights[name].codes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_find_the_minimum_of_a_bowl(name: str) -> None:
    x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], requires_grad=True)
    wanted = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    optimizer = OPTIMIZERS[name]([{"params": [x], "lr": 0.05}])
    for _ in range(200):
        optimizer.zero_grad()
        (x - wanted).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), wanted, atol=0.1, rtol=0)


def test_adamp_leaves_the_norm_alone_where_the_loss_does() -> None:
    """cos(w, u) does not depend on |w|: the step is orthogonal to w, Adam's is not."""
    u = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    grown = {}
    for name in ("adam", "adamp"):
        w = torch.tensor([[0.3, -0.2, 0.9, 0.1]], requires_grad=True)
        before = w.detach().clone()
        optimizer = OPTIMIZERS[name]([{"params": [w], "lr": 1e-3}])
        (-torch.nn.functional.cosine_similarity(w, u).sum()).backward()
        optimizer.step()
        grown[name] = abs(float(((w.detach() - before) * before).sum()))
    assert grown["adamp"] < 1e-7 < 1e-5 < grown["adam"]


def test_squared_error_is_relative_to_the_energy() -> None:
    wanted = {"y": torch.tensor([[3.0, 4.0]])}
    assert squared_error({"y": torch.tensor([[3.0, 9.0]])}, wanted).item() == pytest.approx(1.0)


def test_fisher_error_weighs_the_elements() -> None:
    loss = fisher_error({"y": np.array([[2.0, 0.0]], np.float32)})
    wanted = {"y": torch.tensor([[3.0, 4.0]])}
    assert loss({"y": torch.tensor([[3.0, 9.0]])}, wanted).item() == 0
    assert loss({"y": torch.tensor([[6.0, 4.0]])}, wanted).item() == pytest.approx(1.0)


def test_divergence_is_that_of_the_distributions_behind_the_rest() -> None:
    """KL(softmax(0, log 3) || softmax(0, 0)) = 1/4 log 1/2 + 3/4 log 3/2."""
    loss = divergence(lambda values: {"z": values["y"] * 2})
    wanted = {"z": torch.tensor([[0.0, np.log(3)]], dtype=torch.float32)}
    found = loss({"y": torch.zeros(1, 2)}, wanted).item()
    assert found == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-5)


def test_fisher_diagonal_of_logits_is_the_variance_of_the_labels(
    net: tuple[Context, Plan],
) -> None:
    """d log p(y) / dz = onehot(y) - p, whose mean square over y is p (1 - p)."""
    context, _ = net
    blocks = find_blocks(context.model, context.outline)
    result = str(context.model.graph.outputs[0].name)
    store = SampleStore(Layout(np.zeros(512, np.intp), np.arange(512)), 1 << 20)
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 6)).astype(np.float32)
    store.write(np.arange(512), {"x": np.repeat(x, 512, axis=0)})
    found = fisher_diagonals(blocks, 21, store, [result], seed=0)[result][0]
    from ptq.execute.float import FloatRunner

    scores = FloatRunner(context.model, [result]).run({"x": x})[result][0].astype(np.float64)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    wanted = p * (1 - p) / (p * (1 - p)).mean()
    np.testing.assert_allclose(found, wanted, rtol=0.25, atol=0.02)


def test_flexround_starts_at_the_plan_where_dividing_reaches_it(net: tuple[Context, Plan]) -> None:
    context, plan = net
    program = lower(context.model, context.outline, plan)
    layers = learnable_layers(program.steps, context.outline.weighted, plan)
    for layer in (x for x in layers if x.plan.grid.bits == 3):
        kept = FlexRound(layer, CPU).kept().require_codes().astype(int)
        level = layer.plan.require_codes() - layer.by_channel(layer.plan.zero_point)
        reachable = layer.exact * np.clip(layer.exact, level - 0.3, level + 0.3) > 0
        np.testing.assert_array_equal(
            kept[reachable], layer.plan.require_codes().astype(int)[reachable]
        )


def test_scales_that_move_are_in_the_plan_and_leave_the_function_near(
    net: tuple[Context, Plan],
) -> None:
    """A step half as large, with ratios to match, is what the overrides compute."""
    context, plan = net
    program = lower(context.model, context.outline, plan)
    part = block_steps(program, whole_network(context.model, context.outline))
    site_of = context.outline.site
    sites = learnable_sites(program, part.steps, part.inputs, part.outputs, site_of)
    assert sites
    assert all(program.codes[site].grid.bits == 4 for site in sites)
    layers = learnable_layers(part.steps, context.outline.weighted, plan)
    scales = Scales(sites, layers[1:2], site_of, CPU)
    for log in scales.steps.values():
        log.data.fill_(np.log(0.5))
    (name,) = scales.weights
    scales.weights[name].data.fill_(np.log(1.25))
    learned = [Learned(layer, "latent", CPU) for layer in layers]
    after = with_scales(context.outline, program, plan, learned, scales)
    again = {s.name: s for s in lower(context.model, context.outline, after).steps}
    overrides = scales.overrides(part.steps, CPU)
    for site in sites:
        assert after.activations[site].scale == pytest.approx(plan.activations[site].scale / 2)
    ratio = after.weights[name].scale / plan.weights[name].scale
    np.testing.assert_allclose(ratio, 1.25, rtol=5e-3)
    compared = 0
    for part_of in learned:
        step = part_of.layer.step
        wanted = overrides.get(f"{step.name}.ratio")
        if wanted is not None:
            ratio = wanted.detach()
            np.testing.assert_allclose(again[step.name].requantizer.ratio, ratio, rtol=5e-3)
            bias = part_of.overrides(scales.unit(step))[f"{step.name}.bias"].detach()
            np.testing.assert_allclose(again[step.name].bias, bias, rtol=5e-3, atol=1)
            compared += 1
    assert compared >= 3


def test_steps_read_outside_the_block_are_not_learned(net: tuple[Context, Plan]) -> None:
    context, plan = net
    program = lower(context.model, context.outline, plan)
    for block in find_blocks(context.model, context.outline):
        part = block_steps(program, block)
        sites = learnable_sites(
            program, part.steps, part.inputs, part.outputs, context.outline.site
        )
        outside = {ref.name for ref in (*part.inputs, *part.outputs)}
        assert outside.isdisjoint(sites)
