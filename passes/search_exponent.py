"""Search the exponent of every weight's grid (NUPES-style, arXiv 2308.05600).

Levels are sign(k) |k|^p, p = 1/a >= 1: denser near zero, as weights are. The search is exhaustive
over a, half offset, zero point and clip factor, because an error costs only as much as the grid has
levels (`rounding.row_histograms`). With samples an error is weighed by the mean square of the input
that the weight meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ptq.grid import LARGEST, Grid
from ptq.integer.units import Unit
from ptq.integer.weights import unit_pairs
from ptq.passes.collect_grams import collect_squares, groups, weight_rows
from ptq.passes.context import Context, Progress
from ptq.passes.rounding import candidate_grids, shape_errors
from ptq.plan import LayerGrid, Plan
from ptq.recipe import GridFamily

WIDEST = 6
"""Bits; more levels than that lie so close that an int8 table rounds them together."""

Squares = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class SearchExponent:
    """Choose every weight's grid; weights of 7 and 8 bits stay uniform.

    family: which grids; None: the recipe's ('auto' begins with uniform ones). exponents: a = 1/p to
    try. samples: how many weigh the errors; mean squares need far fewer than second moments do.
    """

    family: GridFamily | None = None
    exponents: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
    samples: int = 64

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan with a grid for every weight that gets one of another shape."""
        units = [u for u in context.outline.weighted if context.weight_bits(u) <= WIDEST]
        choose = FAMILIES[self.family or context.recipe.grid]
        return plan.with_grids(choose(self, context, plan, units))


def no_grids(
    how: SearchExponent, context: Context, plan: Plan, units: Sequence[Unit]
) -> dict[str, LayerGrid]:
    """Leave every weight on the affine uniform grid."""
    return {}


def grid_per_layer(
    how: SearchExponent, context: Context, plan: Plan, units: Sequence[Unit]
) -> dict[str, LayerGrid]:
    """Each layer's best grid, see `layer_grid`."""
    squares = input_squares(how, context, units)
    chosen: dict[str, LayerGrid] = {}
    for done, unit in enumerate(units, 1):
        base = base_grid(context, plan, unit)
        chosen[unit.name] = layer_grid(how, context, unit, base, squares.get(unit.name))
        context.report(Progress("search exponents", done, len(units), unit.name))
    return chosen


def layer_grid(
    how: SearchExponent,
    context: Context,
    unit: Unit,
    base: Grid,
    squares: npt.NDArray[np.float64] | None,
) -> LayerGrid:
    """A layer's best exponent and half offset by its own (weighed) weight error.

    Or each channel's exponent, if the recipe says so; a grouped convolution with several channels a
    group has one for all, because they are rounded together.
    squares: mean squares of its inputs, [groups, K].
    """
    rows, grids = weight_rows(unit), candidate_grids(base, [1 / a for a in how.exponents])
    errors = shape_errors(rows, grids, squares)
    best = grids[int(errors.sum(axis=1).argmin())]
    alone = context.recipe.exponents == "channel" and groups(unit) in (1, len(rows))
    return best_of_each(grids, errors, best) if alone else best


def best_of_each(
    grids: Sequence[Grid], errors: npt.NDArray[np.float64], layer: Grid
) -> tuple[Grid, ...]:
    """Every channel's own exponent: errors [grids, channels]; the half offset is the layer's."""
    cost = np.where([[grid.half == layer.half] for grid in grids], errors, np.inf)
    return tuple(grids[int(index)] for index in cost.argmin(axis=0))


def one_exponent(
    how: SearchExponent, context: Context, plan: Plan, units: Sequence[Unit]
) -> dict[str, LayerGrid]:
    """PowerQuant (arXiv 2301.09858): symmetric, nothing clipped, one exponent for all layers.

    It minimises the sum over layers of ||W - W^||_2, without samples.
    """
    bases = {u.name: replace(base_grid(context, plan, u), symmetric=True) for u in units}
    norms = np.zeros(len(how.exponents))
    for done, unit in enumerate(units, 1):
        grids = [replace(bases[unit.name], power=1 / a) for a in how.exponents]
        errors = shape_errors(weight_rows(unit), grids, ratios=(1.0,))
        norms += np.sqrt(errors.sum(axis=1))
        context.report(Progress("search exponents", done, len(units), unit.name))
    power = 1 / how.exponents[int(norms.argmin())]
    return {name: replace(base, power=power) for name, base in bases.items()}


Choose = Callable[[SearchExponent, Context, Plan, Sequence[Unit]], dict[str, LayerGrid]]

FAMILIES: Mapping[GridFamily, Choose] = {
    "uniform": no_grids,
    "power": grid_per_layer,
    "powerquant": one_exponent,
    "auto": no_grids,
}


def base_grid(context: Context, plan: Plan, unit: Unit) -> Grid:
    """The unit's grid before its exponent is known.

    Its table ends where two weights of the largest magnitude cannot saturate any CPU's arithmetic.
    """
    pairs = unit_pairs(unit, plan.activations[context.outline.site(unit.inputs[0])].high)
    end = LARGEST
    if pairs is not None and context.recipe.cpu == "any":
        end = min(end, pairs.limit // 2)
    return Grid(context.weight_bits(unit), symmetric=context.recipe.symmetric, end=end)


def input_squares(how: SearchExponent, context: Context, units: Sequence[Unit]) -> Squares:
    """Mean squares of every unit's input columns; none if the recipe rounds without samples."""
    if context.recipe.rounding != "gptq":
        return {}
    return collect_squares(context, units, how.samples)
