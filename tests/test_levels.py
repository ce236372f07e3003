"""ptq.levels: what unequal levels promise, from the histogram to the integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ptq
from ptq.execute.differentiable import ProgramGraph
from ptq.grid import Grid
from ptq.histogram import Histogram
from ptq.integer.program import LEVELS, Lookup, before_levels
from ptq.levels import FAMILIES, codebook, power_levels
from ptq.passes.learning.scales import Scales, learnable_sites
from ptq.plan import ActivationPlan, Plan
from ptq.ranges import Density, Levels, choose_range, squared_error
from tests.conv_net import conv_net

ANYTHING = (-np.inf, np.inf)
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from(["relu", "normal", "negative", "skewed", "offset", "two values"])


def is_snap(step: Any) -> bool:
    return isinstance(step, Lookup) and step.function == LEVELS


def histogram_of(shape: str, seed: int) -> Histogram:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(3000)
    made = {
        "relu": np.maximum(x, 0),
        "normal": x,
        "negative": -np.abs(x),
        "skewed": np.where(x > 0, 10 * x, x),
        "offset": x / 10 + 5,
        "two values": np.sign(x),
    }
    histogram = Histogram()
    histogram.update((made[shape] * 2.0 ** rng.integers(-9, 9)).astype(np.float32))
    return histogram


def equal_error(histogram: Histogram, bits: int) -> float:
    """Of the best equally spaced levels, under the density that `power_levels` uses."""
    whole = choose_range(histogram, "minmax", bits, limits=ANYTHING)
    low, high = (np.asarray([x]) for x in choose_range(histogram, "mse", bits, limits=ANYTHING))
    density = Density.of(histogram, whole)
    return float(squared_error(density, Levels(bits, symmetric=False), low, high)[0])


@settings(max_examples=25)
@given(SHAPES, SEEDS, st.integers(2, 6))
def test_power_levels_are_no_worse_than_equal_ones_and_a_codebook_no_worse_than_those(
    shape: str, seed: int, bits: int
) -> None:
    histogram = histogram_of(shape, seed)
    power = power_levels(histogram, "mse", bits, ANYTHING)
    means = codebook(histogram, "mse", bits, ANYTHING)
    slack = 1e-9 * max(histogram.max, -histogram.min) ** 2
    assert power.error <= equal_error(histogram, bits) + slack
    assert means.error <= power.error + slack


@settings(max_examples=25)
@given(SHAPES, SEEDS, st.integers(2, 6), st.sampled_from(sorted(FAMILIES)))
def test_levels_ascend_through_zero_within_the_range(
    shape: str, seed: int, bits: int, family: str
) -> None:
    histogram = histogram_of(shape, seed)
    values = FAMILIES[family](histogram, "mse", bits, ANYTHING).values
    assert len(values) == 1 << bits
    assert (np.diff(values) >= 0).all()
    assert 0.0 in values
    if family == "codebook":
        reach = max(histogram.max, -histogram.min)
        assert (np.abs(values) <= reach * (1 + 1e-9)).all()


def test_a_codebook_keeps_the_ends_that_another_method_chose() -> None:
    histogram = histogram_of("relu", 0)
    values = codebook(histogram, "minmax", 4, ANYTHING).values
    assert (values[0], values[-1]) == (0.0, pytest.approx(histogram.max))


def test_a_codebook_gains_a_decibel_on_half_a_normal_distribution() -> None:
    histogram = histogram_of("relu", 1)
    gained = 10 * np.log10(
        equal_error(histogram, 4) / codebook(histogram, "mse", 4, ANYTHING).error
    )
    assert 1.0 < gained < 3.0


GRID = ActivationPlan(Grid(2), np.float32(0.5), 2, 0, 255, levels=(0, 2, 9, 100))


def test_values_round_to_the_nearest_level_the_lower_of_two() -> None:
    codes = GRID.quantize(np.asarray([-9, 0, 0.1, 1.4, 1.5, 2, 1e9]))
    assert codes.tolist() == [0, 2, 2, 2, 2, 9, 100]
    assert codes.dtype == np.uint8


def test_levels_survive_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    Plan(activations={"x": GRID}).save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan").activations["x"] == GRID


def test_what_layers_read_has_as_many_codes_as_bits_allow() -> None:
    x = np.random.default_rng(0).normal(size=(32, 2, 6, 6)).astype(np.float32)
    recipe = ptq.Recipe.preset("w4a3").replace(effort="fast")
    program = ptq.quantize(conv_net(), {"x": x}, recipe).program
    lookups = [step for step in program.steps if is_snap(step)]
    assert lookups
    assert before_levels(program) == {step.input: step.output for step in lookups}
    for step in lookups:
        grid = program.codes[step.output]
        assert len(grid.levels) <= 8
        assert set(step.table.tolist()) == set(grid.levels)
        assert grid.zero_point in grid.levels


def test_uniform_levels_need_no_table() -> None:
    x = np.random.default_rng(0).normal(size=(32, 2, 6, 6)).astype(np.float32)
    recipe = ptq.Recipe.preset("w4a3").replace(effort="fast", activation_grid="uniform")
    program = ptq.quantize(conv_net(), {"x": x}, recipe).program
    assert not before_levels(program)


def test_gradients_reach_the_steps_of_unequal_levels() -> None:
    x = np.random.default_rng(0).normal(size=(32, 2, 6, 6)).astype(np.float32)
    recipe = ptq.Recipe.preset("w4a3").replace(effort="fast")
    program = ptq.quantize(conv_net(), {"x": x}, recipe).program
    become = before_levels(program)
    site_of = lambda name: become.get(name, name)  # noqa: E731
    sites = learnable_sites(program, program.steps, (), (), site_of)
    assert set(sites) == {step.output for step in program.steps if is_snap(step)}
    scales = Scales(sites, (), site_of, torch.device("cpu"))
    output = program.outputs[0].name
    graph = ProgramGraph(program, program.steps, outputs=[output], exact=False)
    overrides = scales.overrides(program.steps, torch.device("cpu"))
    graph.run({}, {"x": torch.from_numpy(x)}, overrides).raw[output].square().sum().backward()
    assert all(float(step.grad) != 0 for step in scales.steps.values())
