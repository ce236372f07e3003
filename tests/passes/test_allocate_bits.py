"""Allocation: small problems by brute force, ties, and what is said when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ptq.errors import BudgetError
from ptq.passes.allocate_bits import Choice, Option, Problem, allocate_bits, pareto_hull
from ptq.precision import Precision


def option(bits: int, loss: float, activation: int | None = None, **costs: float) -> Option:
    return Option(Precision(bits, activation), loss, costs or {"size_bytes": float(bits)})


def random_problem(seed: int, layers: int = 5) -> Problem:
    rng = np.random.default_rng(seed)
    choices = []
    for index in range(layers):
        size, scale = rng.integers(1, 20), rng.exponential()
        options = [
            option(b, scale * 4.0**-b, a, size_bytes=float(size * b), bops=float(size * b * a))
            for b in (2, 4, 8)
            for a in (4, 8)
        ]
        choices.append(Choice(f"l{index}", f"s{index // 2}", tuple(options)))
    losses = {f"s{i}": {4: 0.1 * rng.exponential(), 8: 0.0} for i in range(3)}
    return Problem(tuple(choices), losses)


def brute_force(problem: Problem, budgets: dict[str, float]) -> float:
    """The least loss over all combinations of options that agree on shared tensors."""
    best = np.inf
    for picked in itertools.product(*(c.options for c in problem.choices)):
        widths: dict[str, set[int | None]] = {}
        for choice, one in zip(problem.choices, picked, strict=True):
            widths.setdefault(choice.site, set()).add(one.precision.activation_bits)
        costs = {n: sum(o.costs[n] for o in picked) for n in budgets}
        if any(len(w) > 1 for w in widths.values()) or any(
            costs[n] > limit + 1e-9 for n, limit in budgets.items()
        ):
            continue
        sites = sum(problem.site_losses[s][w.copy().pop() or 0] for s, w in widths.items())
        best = min(best, sum(o.loss for o in picked) + sites)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_is_the_one_that_trying_everything_finds(seed: int) -> None:
    problem = random_problem(seed)
    cheapest = sum(min(o.costs["size_bytes"] for o in c.options) for c in problem.choices)
    bops = sum(min(o.costs["bops"] for o in c.options) for c in problem.choices)
    budgets = {"size_bytes": 1.7 * cheapest, "bops": 2.3 * bops}
    found = allocate_bits(problem, budgets)
    assert found.loss == pytest.approx(brute_force(problem, budgets), rel=1e-6)
    assert all(found.costs[name] <= limit for name, limit in budgets.items())


def test_layers_that_read_one_tensor_agree_on_its_width() -> None:
    options = (option(8, 0.0, 4, bops=32.0), option(8, 0.0, 8, bops=64.0))
    choices = (Choice("a", "x", options), Choice("b", "x", options))
    problem = Problem(choices, {"x": {4: 1.0, 8: 0.0}})
    # one layer at 4 bits would do for this budget, but both read x
    found = allocate_bits(problem, {"bops": 100.0})
    assert [p.activation_bits for p in found.precisions.values()] == [4, 4]
    assert found.loss == pytest.approx(1.0)


def test_tied_tensors_take_one_width_and_share_their_losses() -> None:
    options = (option(8, 0.0, 4, bops=32.0), option(8, 0.0, 8, bops=64.0))
    problem = Problem(
        (Choice("a", "x", options), Choice("b", "y", options), Choice("c", "z", options)),
        {"x": {4: 0.1, 8: 0.0}, "y": {4: 5.0, 8: 0.0}, "z": {4: 3.0, 8: 0.0}},
        ties=(frozenset({"x", "y"}),),
    )
    # untied, x alone would be narrowed; tied to y that costs more than narrowing z
    found = allocate_bits(problem, {"bops": 160.0})
    assert [p.activation_bits for p in found.precisions.values()] == [8, 8, 4]


def test_the_cheapest_network_of_a_wanted_loss() -> None:
    choices = tuple(
        Choice(name, name, (option(2, 4 * w), option(4, w), option(8, 0.0)))
        for name, w in (("a", 1.0), ("b", 0.1))
    )
    found = allocate_bits(Problem(choices), {"loss": 1.1}, "size_bytes")
    assert {n: p.weight_bits for n, p in found.precisions.items()} == {"a": 4, "b": 4}


def test_a_budget_below_what_is_possible_names_itself_and_the_nearest_value() -> None:
    choices = (Choice("a", "a", (option(2, 1.0), option(8, 0.0))),)
    problem = Problem(choices, fixed={"size_bytes": 100.0})
    with pytest.raises(BudgetError, match=r"size_bytes: got 101 bytes.*is 102") as caught:
        allocate_bits(problem, {"size_bytes": 101.0})
    assert caught.value.exit_code == 5


def test_budgets_that_only_fit_singly_say_what_each_would_have_to_be() -> None:
    options = (option(2, 1.0, size_bytes=2.0, ms=8.0), option(8, 0.0, size_bytes=8.0, ms=2.0))
    with pytest.raises(BudgetError, match=r"singly.*size_bytes 8 \(got 3\), or ms 8 \(got 4\)"):
        allocate_bits(Problem((Choice("a", "a", options),)), {"size_bytes": 3.0, "ms": 4.0})


def test_the_hull_leaves_out_what_a_mixture_beats() -> None:
    points = [(1.0, 4.0), (2.0, 3.5), (3.0, 1.0), (2.0, 4.5), (5.0, 0.5), (6.0, 0.6)]
    assert pareto_hull(points) == [0, 2, 4]
