"""The ladder: what is judged, what is kept, and what it says about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import ptq
from ptq.calib_data import input_specs, open_calibration
from ptq.distances import distances, is_nearer
from ptq.integer.outline import outline
from ptq.ladder import Step, climb, held_out_batches
from ptq.model import load
from ptq.passes.context import Context
from ptq.passes.prepare import prepare
from ptq.pipeline import steps_of
from ptq.plan import Plan
from ptq.recipe import Recipe
from tests.conv_net import conv_net, conv_samples

RECIPE = Recipe(weight_bits=4, samples=64, effort="fast")


def context_of(recipe: Recipe = RECIPE) -> Context:
    graph = prepare(load(conv_net()))
    calib = open_calibration({"x": conv_samples(64)}, input_specs(graph))
    silent = lambda progress: None  # noqa: E731
    return Context(graph, outline(graph, recipe), recipe, calib.batches, silent, calib.samples)


@pytest.fixture(scope="module")
def context() -> Context:
    return context_of()


def spoil(context: Context, plan: Plan) -> Plan:
    """Codes from a die."""
    rng = np.random.default_rng(0)
    changes = {}
    for name, weight in plan.weights.items():
        shape = weight.require_codes().shape
        changes[name] = replace(
            weight, codes=rng.integers(0, weight.grid.size, shape).astype(np.uint8)
        )
    return plan.with_weights(changes)


def test_a_stage_that_spoils_the_network_is_left_out(context: Context) -> None:
    start = steps_of(RECIPE)
    plan, rungs = climb(context, start)
    again, more = climb(context, (*start, Step("die", spoil)))
    assert (more[-1].name, more[-1].kept) == ("die", False)
    assert [rung.name for rung in more[:-1]] == [rung.name for rung in rungs]
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(again.weights[name].require_codes(), weight.codes)


def test_a_stage_that_is_not_judged_is_kept_whatever_it_does(context: Context) -> None:
    _, rungs = climb(context, (*steps_of(RECIPE), Step("die", spoil, judged=False)))
    assert rungs[-1].kept
    assert rungs[-1].sqnr_db < rungs[0].sqnr_db  # type: ignore[operator]


def test_the_result_has_a_rung_for_every_stage_that_changed_something() -> None:
    result = ptq.quantize(conv_net(), {"x": conv_samples(64)}, RECIPE)
    names = [rung.name for rung in result.ladder]
    assert names == ["second-order rounding", "bias correction"]
    assert all(rung.kl is not None and rung.kl >= 0 for rung in result.ladder)
    assert all(rung.seconds >= 0 for rung in result.ladder)


def test_judged_samples_are_the_held_out_ones(context: Context) -> None:
    (every,) = context.batches(64)
    found = np.concatenate([b["x"] for b in held_out_batches(context, 10)])
    np.testing.assert_array_equal(found, every["x"][context.held_out()])


def test_distances_see_a_change_of_the_distribution_and_of_the_values() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], np.float32)
    wanted = [[0, 0], [0, 0], [3, 3]]
    np.testing.assert_allclose(distances(logits, logits + 1), wanted, atol=1e-12)
    assert (distances(logits, logits * 2)[:2] > 0.05).all()
    image = np.ones((2, 1, 2, 2), np.float32)
    np.testing.assert_allclose(distances(image, 2 * image), np.full((3, 2), 4))


def test_softened_scores_let_every_class_count() -> None:
    sure = np.array([[40.0, 0.0, -40.0]])
    (kl,), (softened,), _ = distances(sure, sure + np.array([[0.0, 20.0, 0.0]]))
    assert kl < 1e-8
    assert softened > 0.01
    np.testing.assert_allclose(
        distances(sure, 0.9 * sure)[1], distances(sure / 8, 0.9 * sure / 8)[1]
    )


def test_a_close_call_does_not_decide_which_network_is_nearer() -> None:
    rng = np.random.default_rng(0)
    wanted = 10 * rng.normal(size=(30, 5))
    wanted[0] = [9, 9, -9, -9, 0]
    noise = rng.normal(size=wanted.shape)
    before, after = wanted + noise, wanted + 0.7 * noise
    before[0], after[0] = wanted[0], wanted[0] + [2, -2, 0, 0, 0]
    far, near = distances(wanted, before), distances(wanted, after)
    assert near[0].sum() > far[0].sum()
    assert is_nearer([near], [far])
    assert not is_nearer([far], [near])
    assert is_nearer([far], [far])


def test_a_loss_in_one_output_outweighs_a_smaller_gain_in_another() -> None:
    first, second = np.full((3, 4), 1.0), np.full((3, 4), 1e-6)
    assert not is_nearer([first * 0.9, second * 1.3], [first, second])
    assert is_nearer([first * 0.7, second * 1.3], [first, second])


def test_doubt_forgives_one_sample_and_no_loss_that_all_share() -> None:
    before = np.ones((3, 20))
    one, all_of_them = before * 0.95, before * 1.1
    one[1:, 3] = 4.0
    assert one.sum() > before.sum()
    assert not is_nearer([one], [before])
    assert is_nearer([one], [before], doubt=1.0)
    assert not is_nearer([all_of_them], [before], doubt=1.0)


def test_one_sample_leaves_no_doubt() -> None:
    assert not is_nearer([np.full((3, 1), 1.1)], [np.ones((3, 1))], doubt=1.0)


def test_a_perfect_output_can_only_be_left() -> None:
    exact, off = np.zeros((3, 4)), np.full((3, 4), 1e-9)
    assert is_nearer([exact], [off])
    assert not is_nearer([off], [exact])


@pytest.mark.parametrize(("samples", "held"), [(2, 1), (10, 5), (64, 16), (128, 16), (256, 32)])
def test_enough_samples_are_held_out_to_judge(context: Context, samples: int, held: int) -> None:
    found = replace(context, samples=samples).held_out()
    assert len(found) == held == len(set(found))
