"""Choose the grid of every activation from its histogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.grid import WIDE_BITS, Grid
from ptq.histogram import Histogram
from ptq.integer.claims import constant
from ptq.integer.units import Outline, Site
from ptq.levels import FAMILIES
from ptq.passes.context import Context
from ptq.passes.lost_levels import warn_of_lost_levels
from ptq.passes.tie_layers import tie_layers
from ptq.passes.tie_sums import tie_sums
from ptq.plan import ActivationPlan, Plan
from ptq.ranges import choose_range

FINE_BITS = 8
"""Of the codes among which a power grid has its levels."""
WIDEST_UNEQUAL = 6
"""Bits; equal levels are fine enough beyond."""
SOFTMAX_SCALE = np.float32(2.0**-8)
HEADROOM = 2.0
"""Of 16 bits, which have precision to spare: samples not seen yet have larger outliers."""
SMALLEST_SCALE = 1e-12
ALWAYS_ZERO = 1.0
"""Range of a tensor that is always zero; a tiny one would need multipliers that are not short."""


@dataclass(frozen=True)
class ChooseActivationGrids:
    """Ranges by the recipe's calib_method, then affine grids with an even zero point.

    1. Limits of a fused Relu or Clip bound the range, so that saturation does the clipping.
    2. 16-bit codes reach twice as far as the samples; 8-bit ones clip for the least error.
    3. Softmax outputs have the fixed grid 1/256, zero point 0.
    4. Constants are chosen for like activations, from their own values. Tables of embeddings keep
       their whole range: nothing says how often a row is read, and frequent ones have outliers.
    5. The result of a Concat lends its grid to operands that nobody else reads.
    6. Operands and result of a 16-bit sum share a scale (`tie_sums`).
    7. Tensors around layers that share a weight share a grid (`tie_layers`).
    8. What layers write with few bits gets the levels that the recipe asks for (`ptq.levels`).
    """

    def __call__(self, context: Context, plan: Plan, histograms: Mapping[str, Histogram]) -> Plan:
        """A plan with a grid for every site of the outline."""
        outline, method = context.outline, context.recipe.calib_method
        chosen: dict[str, ActivationPlan] = {}
        whole = _whole_ranges(outline)
        histograms = tie_layers(outline, histograms)
        for site in outline.sites.values():
            if site.fixed:
                chosen[site.name] = ActivationPlan(Grid(8), SOFTMAX_SCALE, 0)
                continue
            histogram = histograms.get(site.name)
            if site.source == "constant":
                histogram = _histogram(constant(outline.constants[site.name]))
            how = "minmax" if site.name in whole else method
            family = context.recipe.activation_grid
            if family != "uniform" and histogram is not None and may_be_unequal(site, histogram):
                chosen[site.name] = unequal_grid(histogram, how, site, family)
            else:
                chosen[site.name] = affine_grid(*_range(site, histogram, how), site)
        chosen = _lend_concat_grids(outline, chosen)
        chosen |= tie_sums(outline, chosen)
        outputs = [str(value.name) for value in context.model.graph.outputs]
        warn_of_lost_levels(outline, outputs, chosen, histograms)
        return plan.with_activations(chosen)


def _whole_ranges(outline: Outline) -> set[str]:
    """Sites of 16 bits, which can afford it, and tables that rows are gathered from."""
    tables = {u.inputs[0] for u in outline.units if u.node.op_type == "Gather"}
    wide = {site.name for site in outline.sites.values() if site.bits == WIDE_BITS}
    return wide | (tables & set(outline.constants))


def _range(site: Site, histogram: Histogram | None, method: str) -> tuple[float, float]:
    if histogram is None:
        return 0.0, 0.0
    low, high = choose_range(histogram, method, site.bits, limits=site.limits)
    wide = site.bits == WIDE_BITS and site.source != "constant"
    return (HEADROOM * low, HEADROOM * high) if wide else (low, high)


def affine_grid(low: float, high: float, site: Site) -> ActivationPlan:
    """The finest affine grid with an even zero point that covers low .. high and zero.

    Codes outside the site's limits are cut off, so a fused clamp costs nothing more.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = ALWAYS_ZERO
    top = (1 << site.bits) - 1
    wanted = top * -low / max(high - low, SMALLEST_SCALE)
    options = {int(2 * np.clip(np.floor(wanted / 2) + i, 0, top // 2)) for i in (-1, 0, 1, 2)}
    scale, zero_point = min(
        (max(_ratio(high, top - z), _ratio(-low, z), SMALLEST_SCALE), z) for z in options
    )
    step = np.float32(scale)
    return limited(ActivationPlan(Grid(site.bits), step, zero_point, 0, top), site)


def unequal_grid(histogram: Histogram, method: str, site: Site, family: str) -> ActivationPlan:
    """Unequal levels among 8-bit codes."""
    found = FAMILIES[family](histogram, method, site.bits, site.limits)
    fine = affine_grid(found.values[0], found.values[-1], replace(site, bits=FINE_BITS))
    levels = tuple(int(code) for code in np.unique(fine.quantize(found.values)))
    return replace(fine, grid=Grid(site.bits, found.power), levels=levels)


def may_be_unequal(site: Site, histogram: Histogram) -> bool:
    """True if a layer writes it with few codes; the boundary, which makes others, has no tables."""
    few = site.bits <= WIDEST_UNEQUAL and site.source == "unit"
    return few and bool(histogram.counts.any())


def _histogram(array: npt.NDArray[Any] | None) -> Histogram | None:
    """Of a constant operand."""
    if array is None:
        return None
    histogram = Histogram()
    histogram.update(array)
    return histogram


def _ratio(span: float, codes: int) -> float:
    return 0.0 if span <= 0 else np.inf if codes == 0 else span / codes


def limited(grid: ActivationPlan, site: Site) -> ActivationPlan:
    """The grid with codes outside the site's limits cut off."""
    top = (1 << (FINE_BITS if grid.levels else site.bits)) - 1
    ends = [
        int(np.clip(np.rint(v / float(grid.scale)) + grid.zero_point, 0, top)) for v in site.limits
    ]
    return replace(grid, low=ends[0], high=ends[1])


def _lend_concat_grids(
    outline: Outline, chosen: dict[str, ActivationPlan]
) -> dict[str, ActivationPlan]:
    """Give a Concat's operands its own grid where no other step reads them."""
    readers: dict[str, set[str]] = {}
    for unit in outline.units:
        for name in unit.inputs:
            if unit.kind != "move":
                readers.setdefault(outline.site(name), set()).add(unit.name)
    for unit in reversed(outline.units):
        if unit.kind != "concat":
            continue
        grid = chosen[unit.output]
        for name in unit.inputs:
            site = outline.sites[outline.site(name)]
            lone = readers[site.name] == {unit.name} and not site.fixed
            if lone and site.bits == grid.grid.bits:
                chosen[site.name] = limited(grid, site)
    return chosen
