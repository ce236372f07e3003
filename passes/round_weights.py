"""Round every weight to codes: nearest, or second-order (GPTQ, then coordinate descent)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptq.grid import Codes
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.passes.collect_grams import (
    Moments,
    batches_of_units,
    collect_moments,
    weight_rows,
)
from ptq.passes.context import Context, Progress
from ptq.passes.rounding import coordinate_descent, gptq
from ptq.plan import Plan, WeightPlan


@dataclass(frozen=True)
class RoundWeights:
    """Codes by the recipe's rounding.

    gram_bytes: layers are taken together while their Gram matrices fit in this.
    """

    gram_bytes: int = 1 << 30

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan whose weights have codes."""
        units = context.outline.weighted
        if context.recipe.rounding == "nearest":
            return plan.with_weights({u.name: nearest(u, plan.weights[u.name]) for u in units})
        for part in batches_of_units(units, self.gram_bytes):
            moments = collect_moments(context, part)
            for done, unit in enumerate(part, 1):
                rounded = second_order(unit, plan.weights[unit.name], moments.pop(unit.name))
                plan = plan.with_weights({unit.name: rounded})
                context.report(Progress("round weights", done, len(part), unit.name))
        return plan


def nearest(unit: Unit, weight: WeightPlan) -> WeightPlan:
    """Codes of the nearest levels."""
    rows = weight_rows(unit).astype(np.float64)
    return with_rows(unit, weight, weight.grid.quantize(rows, weight.scale, weight.zero_point))


def second_order(unit: Unit, weight: WeightPlan, moments: Moments) -> WeightPlan:
    """Codes that minimise the layer's output error tr(dW H dW^T) on the samples."""
    rows = weight_rows(unit).astype(np.float64)
    gram = moments.gram / max(moments.count, 1)
    options = (weight.grid, weight.scale, weight.zero_point)
    codes = gptq(rows, gram, *options)
    codes = coordinate_descent(rows, codes, gram, *options)
    return with_rows(unit, weight, codes)


def with_rows(unit: Unit, weight: WeightPlan, rows: Codes) -> WeightPlan:
    """The plan with codes [channels, K] put back into the float weight's layout."""
    shape = np.moveaxis(unit_weight(unit), unit_axis(unit), 0).shape
    return replace(weight, codes=np.moveaxis(rows.reshape(shape), 0, unit_axis(unit)))
