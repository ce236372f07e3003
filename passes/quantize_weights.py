"""Quantise every weight: a scale the integer contract allows, then second-order rounding.

One pass over the samples serves both: the second moments of a layer's inputs weigh the search
for clip and zero point, and say which way each weight had better round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.arithmetic import exact_shift, nudge_scales
from ptq.integer.pairs import Pairs
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_pairs, unit_weight
from ptq.passes.collect_grams import Moments, batches_of_units, collect_moments, weight_rows
from ptq.passes.context import Context, Progress
from ptq.passes.rounding import (
    Feedback,
    capped_codes,
    damped,
    gptq,
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

DAMP_SAMPLES = 10.0
DAMP_RANGE = (0.01, 0.1)
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
        units = context.outline.weighted
        for part in batches_of_units(units, self.gram_bytes):
            moments = collect_moments(context, part) if second_order else {}
            for done, unit in enumerate(part, 1):
                weight = quantize_weight(context, plan, unit, moments.pop(unit.name, None))
                plan = plan.with_weights({unit.name: weight})
                context.report(Progress("round weights", done, len(part), unit.name))
        return plan


def quantize_weight(
    context: Context, plan: Plan, unit: Unit, moments: Moments | None
) -> WeightPlan:
    """One layer's weight on the grid that costs its output least, of those that the plan allows.

    Without moments by plain weight error and nearest levels.
    """
    gram = None if moments is None else second_moment(moments)
    trials = [round_to(context, plan, unit, gram, grid) for grid in grids(context, plan, unit)]
    return min(trials, key=lambda trial: trial[1])[0]


def grids(context: Context, plan: Plan, unit: Unit) -> tuple[LayerGrid, ...]:
    """The grids to round a weight to: uniform, what the plan found for it, or for 'auto' both."""
    bits = context.weight_bits(unit)
    plain = Grid(bits, symmetric=context.recipe.symmetric or bits == 8)
    found = plan.grids.get(unit.name, plain)
    return (plain, found) if context.recipe.grid == "auto" and found != plain else (found,)


def round_to(
    context: Context, plan: Plan, unit: Unit, gram: Floats | None, shape: LayerGrid
) -> tuple[WeightPlan, float]:
    """One layer's weight on one shape of grid, and its output's error (None: the weight's)."""
    rows = weight_rows(unit).astype(np.float64)
    if isinstance(shape, Grid):
        return finished(unit, shape, round_rows(context, plan, unit, rows, gram, shape))
    found = Rounded.like(rows)
    for grid in dict.fromkeys(shape):
        chosen = np.flatnonzero([each == grid for each in shape])
        own = gram if gram is None or len(gram) == 1 else gram[chosen]
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
    context: Context, plan: Plan, unit: Unit, rows: Floats, gram: Floats | None, grid: Grid
) -> Rounded:
    """Scales, zero points and codes of some channels of a weight on one grid."""
    if in_blocks(context, unit, grid):
        return round_blocks(context, plan, unit, rows, gram, grid)
    snap, pairs = snapping(context, plan, unit), pairs_to_cap(context, plan, unit, grid)
    weighings = (None,) if gram is None else (gram, None)
    searches = [search_scales(rows, grid, g, snap=snap, pairs=pairs) for g in weighings]
    if gram is None:
        scale, zero_point = searches[0]
        codes = DATA_FREE[context.recipe.rounding](by_kernel(unit, rows), grid, scale, zero_point)
        codes = codes.reshape(rows.shape)
    else:
        codes, scale, zero_point = best_rounding(rows, gram, grid, searches)
        codes, scale = refine(rows, codes, gram, grid, scale, zero_point, snap)
    codes = capped_codes(codes, zero_point, pairs)
    w_hat = grid.dequantize(codes, scale, zero_point)
    if gram is None:
        return Rounded(codes, scale, zero_point, np.square(w_hat - rows).sum(axis=1))
    return Rounded(codes, scale, zero_point, row_errors(rows, w_hat, gram))


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


def second_moment(moments: Moments) -> Floats:
    """The matrix H of the layer error tr(dW H dW^T), [groups, K, K].

    Not centred, although bias correction removes the mean error: means differ from sample to
    sample. Damped in proportion to how few samples it was estimated from: DAMP_SAMPLES / samples
    of its mean diagonal, within DAMP_RANGE.
    """
    gram = moments.gram / max(moments.count, 1)
    return damped(gram, float(np.clip(DAMP_SAMPLES / max(moments.samples, 1), *DAMP_RANGE)))


def best_rounding(
    rows: Floats, gram: Floats, grid: Grid, searches: Sequence[tuple[Floats, Integers]]
) -> tuple[Codes, Floats, Integers]:
    """Round on several choices of scale, and keep each row's best by its output error.

    rows: [channels, K]; gram: [groups, K, K]; searches: (scale, zero_point), [channels] each.
    All choices share one factorisation of the Gram matrix.
    """
    groups, trials = len(gram), len(searches)

    def spread(parts: Sequence[Array]) -> Array:
        """[channels, ...] of every trial, joined within each group."""
        grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
        joined = np.concatenate(grouped, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    def split(joined: Array) -> Array:
        """The inverse of `spread`: [trials, channels, ...]."""
        parts = joined.reshape(groups, trials, -1, *joined.shape[1:])
        return np.moveaxis(parts, 1, 0).reshape(trials, len(rows), *joined.shape[1:])

    w = spread([rows] * trials)
    scale, zero_point = (spread(column) for column in zip(*searches, strict=True))
    codes = gptq(w, gram, grid, scale, zero_point, Feedback(damp=0.0))
    error = row_errors(w, grid.dequantize(codes, scale, zero_point), gram)
    winner = split(error).argmin(axis=0)
    each = np.arange(len(rows))
    return split(codes)[winner, each], split(scale)[winner, each], split(zero_point)[winner, each]


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
