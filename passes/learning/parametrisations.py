"""The table of variables: what can be learned on which family of grids."""

from __future__ import annotations

from typing import Literal

from ptq.passes.learning.uniform import AdaRound, Latent
from ptq.passes.learning.variable import Make
from ptq.plan import WeightPlan

Family = Literal["uniform", "table", "blocks"]

VARIABLES: dict[tuple[Family, str], Make] = {
    ("uniform", "latent"): Latent,
    ("uniform", "adaround"): AdaRound,
}
"""(family of the grid, variable) -> what makes it of a layer. A layer that has no entry keeps its
codes."""


def family(plan: WeightPlan) -> Family:
    """'blocks' if groups of inputs have multipliers, 'table' if levels are not plain integers."""
    if plan.block_multiplier is not None:
        return "blocks"
    return "uniform" if plan.grid.uniform and not plan.grid.half else "table"
