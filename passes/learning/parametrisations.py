"""The table of variables: what can be learned on which family of grids."""

from __future__ import annotations

from typing import Literal

import torch

from ptq.passes.learn_rounding import FINEST
from ptq.passes.learning.flexround import FlexRound
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.table import TableLatent
from ptq.passes.learning.uniform import AdaRound, Latent
from ptq.passes.learning.variable import Fixed, Make, Variable
from ptq.plan import WeightPlan

Family = Literal["uniform", "table", "blocks"]

VARIABLES: dict[tuple[Family, str], Make] = {
    ("uniform", "latent"): Latent,
    ("uniform", "adaround"): AdaRound,
    ("uniform", "flexround"): FlexRound,
    ("table", "latent"): TableLatent,
}
"""(family of the grid, variable) -> what makes it of a layer."""


def make_variable(layer: Layer, name: str, device: torch.device) -> Variable:
    """The variable of a layer; a grid that has none keeps its codes."""
    if layer.plan.grid.bits >= FINEST:
        return Fixed(layer, device)
    return VARIABLES.get((family(layer.plan), name), Fixed)(layer, device)


def family(plan: WeightPlan) -> Family:
    """'blocks' if groups of inputs have multipliers, 'table' if levels are not plain integers."""
    if plan.block_multiplier is not None:
        return "blocks"
    return "uniform" if plan.uniform and not plan.grid.half else "table"
