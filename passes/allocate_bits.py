"""Allocate bits: the widths with the least predicted loss that fit every budget.

A multiple-choice knapsack: each layer takes one pair of weight and activation widths. Layers that
read one tensor take the same activation width, and so do tensors whose codes must share a grid
(the operands and the result of a Concat). A sum's operands are not tied, because the program's Add
takes two scales at no cost (HAWQ-V3, arXiv 2011.10680, ties them).

    minimise    sum_l loss_l(w_l) + sum_s loss_s(a_s)
    subject to  sum_l cost_l(w_l, a_l) <= budget,  for every cost that has one

Solved exactly by scipy.optimize.milp (HiGHS). The same with one cost as the objective and the loss
as a budget gives the cheapest network of a wanted quality.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import BudgetError
from ptq.precision import Precision

LOSS = "loss"
SLACK = 1e-9  # of a budget, relative: sums of floats do not meet it exactly
UNITS = {"average_bits": "bits", "size_bytes": "bytes", "bops": "bit operations", LOSS: "nats",
         "latency_ms": "ms"}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One way to run a layer: its weight's share of the loss, and what it costs, by budget."""

    precision: Precision
    loss: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """A layer, the tensor it reads, and the ways to run it."""

    layer: str
    site: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Problem:
    """What there is to choose.

    site_losses: tensor -> activation bits -> loss. ties: groups of tensors with one width.
    fixed: costs that do not depend on the choice.
    """

    choices: tuple[Choice, ...]
    site_losses: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    ties: tuple[frozenset[str], ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)

    def cost(self, name: str, precisions: Mapping[str, Precision]) -> float:
        """What a given allocation costs, or its predicted loss."""
        taken = [
            (c, o) for c in self.choices for o in c.options if o.precision == precisions[c.layer]
        ]
        if name != LOSS:
            return sum(option.costs[name] for _, option in taken) + self.fixed.get(name, 0.0)
        widths = {choice.site: _activation(option) for choice, option in taken}
        sites = sum(losses.get(widths.get(s, 0), 0.0) for s, losses in self.site_losses.items())
        return sum(option.loss for _, option in taken) + sites


@dataclass(frozen=True)
class Allocation:
    """What was chosen: layer -> precision, with its predicted loss and costs."""

    precisions: Mapping[str, Precision]
    loss: float
    costs: Mapping[str, float]


def allocate_bits(
    problem: Problem, budgets: Mapping[str, float], objective: str = LOSS
) -> Allocation:
    """The allocation with the least `objective` (the loss, or a cost) within the budgets.

    budgets: upper bounds of costs, or of LOSS.

    Raises:
        BudgetError: no allocation fits.
    """
    program = _Program.of(problem)
    chosen = program.solve(budgets, objective)
    if chosen is None:
        raise BudgetError(_explain(program, budgets))
    return program.allocation(chosen)


@dataclass(frozen=True)
class _Program:
    """The integer program: one binary variable an option, then one a group and width.

    rows: objective and cost coefficients by name. equal, to: the equality constraints. whole: 1
    where a variable is integral by demand; the groups' are because their layers' are.
    """

    problem: Problem
    rows: Mapping[str, npt.NDArray[np.float64]]
    equal: Any
    to: npt.NDArray[np.float64]
    whole: npt.NDArray[np.integer]

    @staticmethod
    def of(problem: Problem) -> _Program:
        """Lay the variables out and tie them."""
        group = _groups(problem)
        options = [(c, o) for c in problem.choices for o in c.options]
        widths = sorted({(group[c.site], _activation(o)) for c, o in options})
        column = {key: len(options) + i for i, key in enumerate(widths)}
        names = {name for _, option in options for name in option.costs} | {LOSS}
        rows = {name: np.zeros(len(options) + len(widths)) for name in names}
        for index, (_, option) in enumerate(options):
            rows[LOSS][index] = option.loss
            for name, cost in option.costs.items():
                rows[name][index] = cost
        for site, losses in problem.site_losses.items():
            for bits, loss in losses.items():
                if (group.get(site, site), bits) in column:
                    rows[LOSS][column[group[site], bits]] += loss
        equal, to = _constraints(problem, group, column)
        whole = np.repeat([1, 0], [len(options), len(widths)])
        return _Program(problem, rows, equal, to, whole)

    def solve(self, budgets: Mapping[str, float], objective: str) -> npt.NDArray[np.bool_] | None:
        """The chosen variables, or None if nothing fits."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self.equal, self.to, self.to)]
        for name, limit in budgets.items():
            room = limit - self.problem.fixed.get(name, 0.0)
            scale = max(abs(room), np.abs(self.rows[name]).max(initial=0.0)) or 1.0
            row = self.rows[name] / scale
            constraints.append(LinearConstraint(row[None], -np.inf, room / scale + SLACK))
        target = self.rows[objective] / (np.abs(self.rows[objective]).max(initial=0.0) or 1.0)
        with _stdout_kept():
            found = milp(
                target, constraints=constraints, integrality=self.whole, bounds=Bounds(0, 1)
            )
        return None if found.x is None else found.x > 0.5

    def cost(self, name: str, chosen: npt.NDArray[np.bool_]) -> float:
        """What a choice costs."""
        return float(self.rows[name][chosen].sum()) + self.problem.fixed.get(name, 0.0)

    def allocation(self, chosen: npt.NDArray[np.bool_]) -> Allocation:
        """The choice by layer."""
        options = [(c.layer, o) for c in self.problem.choices for o in c.options]
        taken = {
            layer: option.precision
            for (layer, option), here in zip(options, chosen, strict=False)
            if here
        }
        costs = {name: self.cost(name, chosen) for name in self.rows if name != LOSS}
        return Allocation(taken, self.cost(LOSS, chosen), costs)

    def least(self, name: str, budgets: Mapping[str, float]) -> float | None:
        """The least that a cost can be within the other budgets."""
        others = {n: limit for n, limit in budgets.items() if n != name}
        chosen = self.solve(others, name)
        return None if chosen is None else self.cost(name, chosen)


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """HiGHS prints to the process's stdout at times, where our JSON goes: to stderr with it."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _groups(problem: Problem) -> dict[str, str]:
    """Tensor -> the tensor that stands for all those tied to it."""
    sites = [choice.site for choice in problem.choices] + list(problem.site_losses)
    group = {site: site for site in sites}
    for tie in problem.ties:
        members = [site for site in group if site in tie]
        old = {group[site] for site in members}
        group |= {site: members[0] for site in group if group[site] in old}
    return group


def _constraints(
    problem: Problem, group: Mapping[str, str], column: Mapping[tuple[str, int], int]
) -> tuple[Any, npt.NDArray[np.float64]]:
    """One option a layer; a layer's activation width is its group's."""
    from scipy.sparse import coo_array

    entries: list[tuple[int, int, float]] = []
    to: list[float] = []
    start = 0
    for choice in problem.choices:
        here = range(start, start + len(choice.options))
        start += len(choice.options)
        entries += [(len(to), index, 1.0) for index in here]
        to.append(1.0)
        for bits in sorted({_activation(option) for option in choice.options}):
            same = [i for i, o in zip(here, choice.options, strict=True) if _activation(o) == bits]
            entries += [(len(to), index, 1.0) for index in same]
            entries.append((len(to), column[group[choice.site], bits], -1.0))
            to.append(0.0)
    rows, columns, values = zip(*entries, strict=True)
    size = start + len(column)
    return coo_array((values, (rows, columns)), shape=(len(to), size)).tocsr(), np.array(to)


def _activation(option: Option) -> int:
    """Width of the activation, 0 where the option does not choose one."""
    return option.precision.activation_bits or 0


def _explain(program: _Program, budgets: Mapping[str, float]) -> str:
    """Which budget binds, and the nearest value that fits."""
    for name, limit in budgets.items():
        least = program.least(name, {})
        if least is not None and least > limit:
            return (
                f"budget {name}: got {limit:g} {UNITS.get(name, '')}; the least that any choice "
                f"reaches is {least:.6g}: raise it to that, or leave layers out with --exclude"
            )
    nearest = {name: program.least(name, budgets) for name in budgets}
    reachable = [
        f"{name} {value:.6g} (got {budgets[name]:g})"
        for name, value in nearest.items()
        if value is not None
    ]
    return (
        f"budgets {' and '.join(budgets)} fit singly but not together; with the others as they "
        f"are, wanted at least {', or '.join(reachable) or 'two of them raised'}"
    )


def problem_size(problem: Problem) -> tuple[int, int]:
    """Layers and options, for reports."""
    return len(problem.choices), sum(len(choice.options) for choice in problem.choices)


def pareto_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points on the lower left convex hull, by ascending cost.

    points: (cost, loss). What is off it is a mixture of neighbours on it, and worse.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    hull: list[int] = []
    for index in order:
        if hull and points[index][1] >= points[hull[-1]][1]:
            continue
        while len(hull) > 1 and _above(points[hull[-2]], points[hull[-1]], points[index]):
            hull.pop()
        hull.append(index)
    return hull


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """True if b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
