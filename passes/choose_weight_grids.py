"""Choose scale and zero point of every weight channel, among those the integer contract allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Grid
from ptq.integer.arithmetic import exact_shift, nudge_scales
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis
from ptq.passes.collect_grams import weight_rows
from ptq.passes.context import Context
from ptq.passes.rounding import search_scales
from ptq.plan import Plan, WeightPlan

Snap = Callable[[npt.NDArray[np.floating]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ChooseWeightGrids:
    """Search clip and zero point per channel for the least error of nearest rounding.

    Every candidate scale is first nudged so that its requantisation multiplier is short and exact:
    rounding is searched on the scales that will run.
    """

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan with a grid, scales and zero points (no codes yet) for every weight."""
        changes = {}
        for unit in context.outline.weighted:
            bits = context.weight_bits(unit)
            grid = Grid(bits, symmetric=context.recipe.symmetric or bits == 8)
            rows = weight_rows(unit).astype(np.float64)
            scale, zero_point = search_scales(rows, grid, snap=snapping(context, plan, unit))
            changes[unit.name] = WeightPlan(
                grid, unit_axis(unit), scale.astype(np.float32), zero_point.astype(np.int64)
            )
        return plan.with_weights(changes)


def snapping(context: Context, plan: Plan, unit: Unit) -> Snap:
    """The function that nudges this unit's scales to short, exact multipliers."""
    x = plan.activations[context.outline.site(unit.inputs[0])]
    y = plan.activations[unit.output]
    limit = exact_shift(y.zero_point, y.low, y.high)
    return lambda scale: nudge_scales(scale, x.scale, y.scale, limit)
