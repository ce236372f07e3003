"""Give the operands and the result of a 16-bit sum one scale.

    y = clamp(z + RNE(((a - za) M + (b - zb) N) / 2^S))    ->    y = clamp(z - za - zb + a + b)

No multiplication, no rounding; and z = za + zb if nothing else is added up with the three. An
operand that only the sum reads loses nothing that counts: its step becomes the sum's, which rounds
to that step anyway. What others read as well keeps all but `SPARE_BITS` of its precision, or its
scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ptq.grid import WIDE_BITS
from ptq.integer.units import Outline
from ptq.plan import ActivationPlan

SPARE_BITS = 3
"""Of the 16 that a tensor has which is read by others than the sum."""
TOP = (1 << WIDE_BITS) - 1

TRIO = 3
"""Both operands of a sum and its result."""
SLACK = 4
"""Codes for zero points to be rounded to even numbers."""

Grids = Mapping[str, ActivationPlan]


def tie_sums(outline: Outline, grids: Grids) -> dict[str, ActivationPlan]:
    """The grids of those sites that change."""
    groups: dict[str, frozenset[str]] = {}
    lent = _operands_of_one_sum(outline)
    for unit in reversed(outline.units):
        if unit.kind != "add":
            continue
        result = outline.site(unit.output)
        for name in unit.inputs:
            sites = (result, outline.site(name))
            both = frozenset().union(*(groups.get(site, {site}) for site in sites))
            if all(_whole(outline, grids, site) for site in sites) and _agree(both, grids, lent):
                groups |= dict.fromkeys(both, both)
    tied: dict[str, ActivationPlan] = {}
    for group in set(groups.values()):
        scale = max(grids[site].scale for site in group)
        tied |= {site: with_scale(grids[site], scale) for site in group}
    for unit in outline.units:
        if len(groups.get(unit.output, ())) == TRIO and unit.node.op_type == "Add":
            a, b, y = (outline.site(name) for name in (*unit.inputs, unit.output))
            trio = _with_common_zero(grids[a], grids[b], grids[y])
            tied |= {} if trio is None else dict(zip((a, b, y), trio, strict=True))
    return tied


def _operands_of_one_sum(outline: Outline) -> set[str]:
    """Sites that one addition reads, and nothing else."""
    readings = Counter(
        outline.site(name) for u in outline.units if u.kind != "move" for name in u.inputs
    )
    added = {outline.site(n) for u in outline.units if u.kind == "add" for n in u.inputs}
    return {site for site in added if readings[site] == 1}


def _whole(outline: Outline, grids: Grids, site: str) -> bool:
    """True for 16-bit codes that nothing cuts off."""
    bits = outline.sites[site].bits
    return bits == WIDE_BITS and (grids[site].low, grids[site].high) == (0, TOP)


def _agree(sites: frozenset[str], grids: Grids, lent: set[str]) -> bool:
    """True if no site that others read loses more than the spare bits."""
    coarsest = max(float(grids[site].scale) for site in sites)
    return all(s in lent or coarsest <= float(grids[s].scale) * 2**SPARE_BITS for s in sites)


def with_scale(grid: ActivationPlan, scale: np.float32) -> ActivationPlan:
    """The grid with a coarser scale; what that adds to its range is shared by both ends."""
    shrunk = float(grid.scale) / float(scale)
    zero_point = grid.zero_point * shrunk + grid.high * (1 - shrunk) / 2
    return replace(grid, scale=scale, zero_point=_even(zero_point))


def _with_common_zero(
    a: ActivationPlan, b: ActivationPlan, y: ActivationPlan
) -> tuple[ActivationPlan, ...] | None:
    """The grids with one scale and z = za + zb; None if that takes too coarse a scale.

    Below zero y's codes have to hold what a and b have there together, above it what y has.
    """
    (a_low, a_high), (b_low, b_high), (y_low, y_high) = (_reach(grid) for grid in (a, b, y))
    below = max(y_low, a_low + b_low)
    widest = max(float(grid.scale) for grid in (a, b, y))
    scale = float(np.float32(max(widest, (below + y_high) / (TOP - SLACK))))
    zero = _even((below + TOP * scale - y_high) / 2 / scale)
    least = max(a_low / scale, zero - TOP + b_high / scale)
    most = min(TOP - a_high / scale, zero - b_low / scale)
    if least > most or scale > y.scale * 2**SPARE_BITS:
        return None
    first = _even((least + most) / 2)
    zeros = (first, zero - first, zero)
    return tuple(
        replace(grid, scale=np.float32(scale), zero_point=zero)
        for grid, zero in zip((a, b, y), zeros, strict=True)
    )


def _reach(grid: ActivationPlan) -> tuple[float, float]:
    """How far the codes reach below and above zero."""
    scale = float(grid.scale)
    return grid.zero_point * scale, (grid.high - grid.zero_point) * scale


def _even(number: float) -> int:
    return 2 * round(number / 2)
