"""Quantise every weight: a scale the integer contract allows, then second-order rounding.

One pass over the samples serves both: the second moments of a layer's inputs weigh the search
for clip and zero point, and say which way each weight had better round. A weight that several
layers multiply with (unrolled steps, tied layers) is rounded once, on the moments of them all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.arithmetic import exact_shift, nudge_scales
from ptq.integer.pairs import Pairs
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_pairs, unit_weight, weight_key
from ptq.passes.collect_grams import (
    Moments,
    batches_of_units,
    collect_moments,
    weight_rows,
)
from ptq.passes.context import Context, Progress
from ptq.passes.rounding import (
    Curvature,
    capped_codes,
    damped,
    feed_back,
    refine,
    row_errors,
    search_scales,
    squant,
)
from ptq.passes.rounding.block_scales import nearest_blocks, squant_blocks
from ptq.passes.rounding.integer_blocks import (
    PAIR_SAFE,
    WHOLE,
    WIDEST,
    Blocks,
    round_in_blocks,
)
from ptq.plan import LayerGrid, Plan, WeightPlan

_LOG = logging.getLogger("ptq")

LOOSE = 0.01
"""Share that a scale may differ by from the one that a shared weight was rounded on."""
DATA_FREE: dict[str, Callable[[Floats, Grid, Floats, Integers], Codes]] = {
    "nearest": lambda w, grid, scale, zero_point: grid.quantize(w, scale, zero_point),
    "squant": squant,
}

Array = npt.NDArray[Any]
Snap = Callable[[npt.NDArray[np.floating]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class QuantizeWeights:
    """Scales, zero points and codes by the recipe's rounding.

    Every candidate scale is nudged first so that its requantisation multiplier is short and exact:
    rounding is searched on the scales that will run.
    gram_bytes: layers are taken together while their Gram matrices fit in this.
    """

    gram_bytes: int = 1 << 30

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan with grid, scales, zero points and codes for every weight."""
        second_order = context.recipe.rounding == "gptq"
        sharers = list(units_by_weight(context, plan))
        for part in batches_of_units(sharers, self.gram_bytes):
            moments = collect_moments(context, part) if second_order else {}
            for done, units in enumerate(part, 1):
                name = units[0].name
                found = quantize_shared(context, plan, units, moments.pop(name, None))
                plan = plan.with_weights(found)
                context.report(Progress("round weights", done, len(part), name))
        return plan


def units_by_weight(context: Context, plan: Plan) -> Iterator[tuple[Unit, ...]]:
    """Units that multiply with equal weights, rounded to the same grid, in order of the first."""
    found: dict[tuple[object, ...], list[Unit]] = {}
    for unit in context.outline.weighted:
        shapes = grids(context, plan, unit)
        pairs = [pairs_to_cap(context, plan, unit, g) for g in shapes if isinstance(g, Grid)]
        key = weight_key(unit), shapes, tuple(p and p.limit for p in pairs)
        found.setdefault(key, []).append(unit)
    yield from map(tuple, found.values())


def quantize_shared(
    context: Context, plan: Plan, units: Sequence[Unit], moments: Moments | None
) -> dict[str, WeightPlan]:
    """One weight's plan for each of its units: the same codes, and scales nudged for each.

    moments: of all of them. Units whose multipliers are so small that nudging moves a scale by more
    than LOOSE have codes of their own.
    """
    first = quantize_weight(context, plan, units[0], moments)
    found, others = {units[0].name: first}, list[Unit]()
    for unit in units[1:]:
        scale = snapping(context, plan, unit)(first.scale)
        if np.allclose(scale, first.scale, rtol=LOOSE, atol=0.0):
            found[unit.name] = replace(first, scale=scale)
        else:
            others.append(unit)
    return found | (quantize_shared(context, plan, others, moments) if others else {})


def quantize_weight(
    context: Context, plan: Plan, unit: Unit, moments: Moments | None
) -> WeightPlan:
    """One layer's weight on the grid that costs its output least, of those that the plan allows.

    Without moments by plain weight error.
    """
    h = None if moments is None else moments.curvature
    if moments is not None and h is None:
        _LOG.info("%s: has too many inputs for second-order rounding; SQuant instead", unit.name)
    trials = [round_to(context, plan, unit, h, grid) for grid in grids(context, plan, unit)]
    return min(trials, key=lambda trial: trial[1])[0]


def grids(context: Context, plan: Plan, unit: Unit) -> tuple[LayerGrid, ...]:
    """The grids to round a weight to: uniform, what the plan found for it, or for 'auto' both."""
    bits = context.weight_bits(unit)
    plain = Grid(bits, symmetric=context.recipe.symmetric or bits == 8)
    found = plan.grids.get(unit.name, plain)
    return (plain, found) if context.recipe.grid == "auto" and found != plain else (found,)


def round_to(
    context: Context, plan: Plan, unit: Unit, h: Curvature | None, shape: LayerGrid
) -> tuple[WeightPlan, float]:
    """One layer's weight on one shape of grid, and its output's error (None: the weight's)."""
    rows = weight_rows(unit).astype(np.float64)
    if isinstance(shape, Grid):
        return finished(unit, shape, round_rows(context, plan, unit, rows, h, shape))
    found = Rounded.like(rows)
    for grid in dict.fromkeys(shape):
        chosen = np.flatnonzero([each == grid for each in shape])
        own = None if h is None else h.of_groups(chosen)
        found.put(chosen, round_rows(context, plan, unit, rows[chosen], own, grid))
    weight, error = finished(unit, max(shape, key=shape.count), found)
    return replace(weight, powers=np.array([grid.power for grid in shape])), error


@dataclass(frozen=True)
class Rounded:
    """Codes [rows, K] uint8; scale, zero_point, error: [rows].

    factors: of blocks of `block_size` inputs, [rows, blocks] int8, or None.
    """

    codes: Codes
    scale: Floats
    zero_point: Integers
    error: Floats
    factors: npt.NDArray[np.int8] | None = None
    block_size: int = 0

    @staticmethod
    def like(rows: Floats) -> Rounded:
        """Room for rows [rows, K]."""
        n = len(rows)
        return Rounded(np.zeros(rows.shape, np.uint8), np.ones(n), np.zeros(n, int), np.zeros(n))

    def put(self, chosen: npt.NDArray[np.intp], part: Rounded) -> None:
        """Fill in some of the rows."""
        for name in ("codes", "scale", "zero_point", "error"):
            getattr(self, name)[chosen] = getattr(part, name)


def round_rows(
    context: Context, plan: Plan, unit: Unit, rows: Floats, h: Curvature | None, grid: Grid
) -> Rounded:
    """Scales, zero points and codes of some channels of a weight on one grid."""
    if in_blocks(context, unit, grid):
        return round_blocks(context, plan, unit, rows, None if h is None else h.gram, grid)
    snap, pairs = snapping(context, plan, unit), pairs_to_cap(context, plan, unit, grid)
    if h is None:
        scale, zero_point = search_scales(rows, grid, snap=snap, pairs=pairs)
        how = DATA_FREE.get(context.recipe.rounding, squant)
        codes = how(by_kernel(unit, rows), grid, scale, zero_point)
        codes = capped_codes(codes.reshape(rows.shape), zero_point, pairs)
        difference = grid.dequantize(codes, scale, zero_point) - rows
        return Rounded(codes, scale, zero_point, np.square(difference).sum(axis=1))
    trials = []
    for diagonal in (h.diagonal, None):
        scale, zero_point = search_scales(rows, grid, diag=diagonal, snap=snap, pairs=pairs)
        codes, error = feed_back(rows, h.factor, grid, scale, zero_point, pairs=pairs)
        trials.append(Rounded(codes, scale, zero_point, error))
    best = better_rows(*trials)
    codes, scale = refine(
        rows, best.codes, h.gram, grid, best.scale, best.zero_point, snap, pairs=pairs
    )
    error = row_errors(rows, grid.dequantize(codes, scale, best.zero_point), h.gram)
    return Rounded(codes, scale, best.zero_point, error)


def better_rows(first: Rounded, second: Rounded) -> Rounded:
    """Each row as it was rounded with the smaller error."""
    take = first.error <= second.error
    return Rounded(
        np.where(take[:, None], first.codes, second.codes),
        np.where(take, first.scale, second.scale),
        np.where(take, first.zero_point, second.zero_point),
        np.where(take, first.error, second.error),
    )


def in_blocks(context: Context, unit: Unit, grid: Grid) -> bool:
    """True if groups of inputs of this product have scales of their own."""
    product = unit.kind == "gemm" and context.recipe.group_size is not None
    return product and grid.uniform and not grid.half and grid.bits <= WIDEST


def round_blocks(
    context: Context, plan: Plan, unit: Unit, rows: Floats, gram: Floats | None, grid: Grid
) -> Rounded:
    """Row scales, block factors and codes of a product's weight."""
    size = context.recipe.block_size
    short = -rows.shape[1] % size
    w = np.pad(rows, ((0, 0), (0, short)))
    h = None if gram is None else damped(np.pad(gram, ((0, 0), (0, short), (0, short))), 1e-9)
    limit = WHOLE if context.recipe.cpu == "vnni" else PAIR_SAFE
    alone = squant_blocks if context.recipe.rounding == "squant" else nearest_blocks
    how = Blocks(size, limit, snapping(context, plan, unit), alone)
    found, scale, factors = round_in_blocks(w, grid, h, how)
    width = rows.shape[1]
    difference = found.dequantize()[:, :width] - rows
    exact = np.square(difference).sum(axis=1)
    error = exact if gram is None else row_errors(rows, rows + difference, gram)
    return Rounded(found.codes[:, :width], scale, found.zero_point[:, 0], error, factors, size)


def finished(unit: Unit, grid: Grid, found: Rounded) -> tuple[WeightPlan, float]:
    """The plan of a weight, and the sum of its rows' errors."""
    scale, zero_point = found.scale.astype(np.float32), found.zero_point.astype(np.int64)
    codes = in_layout(unit, found.codes)
    weight = WeightPlan(grid, unit_axis(unit), scale, zero_point, codes)
    if found.factors is not None:
        weight = replace(weight, block_size=found.block_size, block_multiplier=found.factors)
    return weight, float(found.error.sum())


def by_kernel(unit: Unit, rows: Floats) -> Floats:
    """[channels, K] -> [channels, in, k]: k elements a kernel, 1 for matrix products."""
    kernel = math.prod(unit_weight(unit).shape[2:]) if unit.kind == "conv" else 1
    return rows.reshape(len(rows), -1, kernel)


def snapping(context: Context, plan: Plan, unit: Unit) -> Snap:
    """The function that nudges this unit's scales to short, exact multipliers."""
    x = plan.activations[context.outline.site(unit.inputs[0])]
    y = plan.activations[unit.output]
    limit = exact_shift(y.zero_point, y.low, y.high)
    return lambda scale: nudge_scales(scale, x.scale, y.scale, limit)


def pairs_to_cap(context: Context, plan: Plan, unit: Unit, grid: Grid) -> Pairs | None:
    """The pairs of the weight that must not saturate on any CPU, or None if none can."""
    if context.recipe.cpu == "vnni" or grid.bits < 8:
        return None
    pairs = unit_pairs(unit, plan.activations[context.outline.site(unit.inputs[0])].high)
    return None if pairs is None or pairs.limit >= grid.size else pairs


def in_layout(unit: Unit, rows: Codes) -> Codes:
    """Codes [channels, K] put back into the float weight's layout."""
    shape = np.moveaxis(unit_weight(unit), unit_axis(unit), 0).shape
    return np.moveaxis(rows.reshape(shape), 0, unit_axis(unit))
