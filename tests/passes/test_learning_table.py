"""Learned codes and exponents of table grids: derivatives, starts, and codes that travel."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ptq.grid import Grid
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.table import Levels, TableLatent, fractional_codes
from ptq.plan import WeightPlan

CPU = torch.device("cpu")
GRIDS = (
    Grid(4, power=1.25, end=64),
    Grid(3, power=1.4, half=True),
    Grid(2, power=1.1),
    Grid(3, half=True),
)


def layer_of(grid: Grid, seed: int = 0) -> Layer:
    """Weights [6, 10] near the levels of random codes, with three zero points."""
    rng = np.random.default_rng(seed)
    zero_point = np.resize(grid.middle + np.array([0, -1, 0]), 6)
    codes = rng.integers(0, grid.size, (6, 10)).astype(np.uint8)
    plan = WeightPlan(grid, 0, np.full(6, 0.1, np.float32), zero_point, codes)
    exact = plan.decode() + rng.normal(0, 2, codes.shape)
    step: Any = SimpleNamespace(name="layer")
    return Layer(step, plan, exact.astype(np.float32))


@pytest.mark.parametrize("grid", [g for g in GRIDS if not g.uniform])
def test_derivative_of_the_levels_is_the_finite_difference(grid: Grid) -> None:
    levels = Levels(layer_of(grid).plan, np.array([0, 1]), CPU)
    (slope,) = torch.autograd.functional.jacobian(
        lambda theta: at(levels, theta), (levels.theta.detach(),)
    )
    step = 1e-6
    theta = levels.theta.detach()
    difference = (at(levels, theta + step) - at(levels, theta - step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-7)
    assert torch.isfinite(slope).all(), "no log of zero at the exact zero"


def at(levels: Levels, theta: torch.Tensor) -> torch.Tensor:
    levels.theta = theta
    return levels.real()


@pytest.mark.parametrize("grid", GRIDS)
def test_real_levels_round_to_the_table(grid: Grid) -> None:
    plan = layer_of(grid).plan
    found = Levels(plan, np.array([0, 1]), CPU).real().detach().round().numpy()
    np.testing.assert_array_equal(found, plan.tables()[:2])


@pytest.mark.parametrize("grid", GRIDS)
def test_learning_starts_at_the_plan(grid: Grid) -> None:
    layer = layer_of(grid)
    variable = TableLatent(layer, CPU)
    np.testing.assert_array_equal(variable.weight().detach().numpy(), layer.plan.decode())
    assert variable.kept().grid.bits == grid.bits
    np.testing.assert_array_equal(variable.kept().require_codes(), layer.plan.require_codes())
    np.testing.assert_array_equal(variable.kept().decode(), layer.plan.decode())


def test_gradient_of_a_latent_is_the_chord_of_its_interval() -> None:
    layer = layer_of(GRIDS[0])
    variable = TableLatent(layer, CPU)
    variable.weight().sum().backward()
    tables = layer.plan.tables().astype(float)
    chords = np.diff(tables, axis=1)
    below = np.clip(np.floor(variable.latent.detach().numpy()), 0, layer.plan.grid.size - 2)
    wanted = np.take_along_axis(chords, below.astype(int), axis=1)
    np.testing.assert_allclose(variable.latent.grad, wanted)
    assert (variable.latent.grad > 0).all()


def test_fractional_codes_interpolate_the_table() -> None:
    layer = layer_of(GRIDS[1])
    tables = layer.plan.tables().astype(float)
    exact = np.zeros((6, 10))
    exact[:, 0], exact[:, 1] = tables[:, 2], (tables[:, 2] + tables[:, 3]) / 2
    exact[:, 2], exact[:, 3] = 1e4, -1e4
    found = fractional_codes(replace(layer, exact=exact.astype(np.float32)))
    np.testing.assert_allclose(found[0, :4], [2, 2.5, 7.499, -0.499])


def follow(layer: Layer, target: WeightPlan, kind: str, lr: float) -> WeightPlan:
    """The layer's plan after Adam has moved one kind of parameter towards the target's weight."""
    variable = TableLatent(layer, CPU)
    optimizer = torch.optim.Adam([variable.parameters()[kind]], lr=lr)
    aim = torch.tensor(target.decode().astype(np.float32))
    for _ in range(300):
        optimizer.zero_grad()
        (variable.weight() - aim).square().sum().backward()
        optimizer.step()
        variable.settle()
    np.testing.assert_array_equal(variable.kept().decode(), variable.weight().detach().numpy())
    return variable.kept()


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_cross_several_levels(grid: Grid) -> None:
    layer = layer_of(grid)
    codes = layer.plan.require_codes().astype(int)
    away = np.where(codes + 3 < grid.size, codes + 3, np.maximum(codes - 3, 0)).astype(np.uint8)
    kept = follow(layer, replace(layer.plan, codes=away), "codes", 0.05)
    assert (kept.require_codes() == away).mean() > 0.9  # the last steps may still overshoot


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[1]])
def test_the_exponent_is_found_by_its_gradient(grid: Grid) -> None:
    layer = layer_of(grid)
    target = replace(layer.plan, grid=replace(grid, power=grid.power + 0.3))
    kept = follow(layer, target, "exponent", 0.01)
    assert kept.grid.power == pytest.approx(target.grid.power, abs=0.05)


def test_an_exponent_that_merges_levels_is_taken_back() -> None:
    levels = Levels(layer_of(Grid(6, power=1.1)).plan, np.array([0]), CPU)
    levels.theta.data.fill_(0.8)
    levels.settle()
    assert levels.grid() == Grid(6, power=levels.grid().power)
    assert levels.grid().power == pytest.approx(1.1)
