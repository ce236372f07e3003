"""Variables of grids whose levels are a table: power exponents and half-integer positions.

A latent u is a real number in code units; the level table T, interpolated between codes, gives the
weight. Its derivative is the chord T_(j+1) - T_j, which is nowhere zero, so a latent can cross as
many levels as it likes (NUPES-style learning over the whole code space, arXiv 2308.05600).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ptq.errors import RecipeError
from ptq.grid import Grid
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.uniform import HALF, NEAR, with_codes
from ptq.plan import WeightPlan

LARGEST_POWER = 2.5


class TableLatent:
    """A free real number a weight and an exponent a layer; the nearest code counts.

    Starts as `uniform.Latent` does. Forward the int8 levels, backward the chords; the exponent
    moves by dT/dp, straight through the table's rounding.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer, plan = layer, layer.plan
        start = plan.require_codes().astype(np.float64)
        latent = np.clip(fractional_codes(layer), start - NEAR, start + NEAR)
        self.latent = torch.tensor(latent.astype(np.float32), device=device, requires_grad=True)
        _, first, row = np.unique(plan.tables(), axis=0, return_index=True, return_inverse=True)
        self.offset = torch.tensor(plan.grid.size * layer.by_channel(row), device=device).long()
        self.levels = Levels(plan, first, device)
        self.top = plan.grid.size - 1

    def parameters(self) -> Mapping[str, Tensor]:
        """The latents, and the exponent where the levels have one."""
        exponent = {"exponent": self.levels.theta} if self.levels.moves else {}
        return {"codes": self.latent, **exponent}

    def weight(self) -> Tensor:
        """The nearest levels; gradients pass to the latents and, summed by level, to the table."""
        table = self.levels.table().reshape(-1)
        below = self.latent.detach().floor().clamp(0, self.top - 1)
        index = self.offset + below.long()
        low, high = table[index], table[index + 1]
        soft = low + (self.latent - below) * (high - low)
        hard = table.detach()[self.offset + self._codes().long()]
        return soft + (hard - soft).detach()

    def penalty(self, beta: float) -> Tensor | None:
        """None: codes are integers all the time."""
        return None

    def settle(self) -> None:
        """Back to where a code is near, and to an exponent whose table exists."""
        self.latent.data.clamp_(-HALF, self.top + HALF)
        self.levels.settle()

    def kept(self) -> WeightPlan:
        """The nearest codes on the learned exponent's grid."""
        return with_codes(replace(self.layer.plan, grid=self.levels.grid()), self._codes())

    def _codes(self) -> Tensor:
        return self.latent.detach().round().clamp(0, self.top)


class Levels:
    """The int8 tables of some channels of a plan, as a function of theta = log p.

    Levels are divided by their largest magnitude, so that the exponent does not move the scale.
    Exponents that differ by channel, and uniform levels, stay as they are.
    """

    def __init__(self, plan: WeightPlan, channels: np.ndarray, device: torch.device) -> None:
        grid, self.zero_points = plan.grid, plan.zero_point[channels]
        self.start, self.moves = grid, not grid.uniform and plan.powers is None
        self.fixed = torch.tensor(plan.tables()[channels].astype(np.float64), device=device)
        position = np.arange(grid.size) - self.zero_points[:, None] + (0.5 if grid.half else 0.0)
        self.sign = torch.tensor(np.sign(position), device=device)
        magnitude = np.where(position == 0, 1.0, np.abs(position))  # log 0 never arises
        self.log = torch.tensor(np.log(magnitude), device=device)
        self.theta = torch.tensor(
            math.log(grid.power), dtype=torch.float64, device=device, requires_grad=True
        )
        self.valid = self.theta.item()

    def real(self) -> Tensor:
        """The levels before they are rounded to int8: [tables, 2^bits] float64.

        T_k = end sign(k) |k|^p / max |k|^p, so dT/dp = T_k (ln |k| - ln max |k|).
        """
        if not self.moves:
            return self.fixed
        furthest = self.log.amax(dim=1, keepdim=True)
        return self.start.end * self.sign * (self.theta.exp() * (self.log - furthest)).exp()

    def table(self) -> Tensor:
        """The int8 levels, float32, with the gradient of the real ones."""
        real = self.real()
        if not self.moves:
            return real.float()
        exact = torch.tensor(self.grid().tables(self.zero_points).astype(np.float64))
        return (real + (exact.to(real.device) - real).detach()).float()

    def grid(self) -> Grid:
        """The grid of the present exponent."""
        if not self.moves:
            return self.start
        return replace(self.start, power=_power(self.theta.item()))

    def settle(self) -> None:
        """Back to the last exponent in 1 .. LARGEST_POWER whose levels are distinct in int8."""
        if not self.moves:
            return
        theta = min(max(self.theta.item(), 0.0), math.log(LARGEST_POWER))
        try:
            replace(self.start, power=_power(theta)).tables(self.zero_points)
            self.valid = theta
        except RecipeError:
            theta = self.valid
        self.theta.data.fill_(theta)


def _power(theta: float) -> float:
    """Never exactly 1: a grid that starts with power levels keeps its table's scale."""
    return max(math.exp(theta), 1.0 + 1e-9)


def fractional_codes(layer: Layer) -> np.ndarray:
    """The float weight in code units, its level table interpolated: float64 of its shape.

    Beyond the table's ends, as far as HALF.
    """
    plan = layer.plan
    rows = np.moveaxis(layer.exact.astype(np.float64), plan.axis, 0)
    tables = plan.tables().astype(np.float64)
    codes = np.arange(-1, plan.grid.size + 1, dtype=np.float64)
    found = np.empty_like(rows)
    for row, (values, table) in enumerate(zip(rows, tables, strict=True)):
        ends = 2 * table[0] - table[1], 2 * table[-1] - table[-2]
        found[row] = np.interp(values, [ends[0], *table, ends[1]], codes)
    found = np.clip(found, -HALF, plan.grid.size - 1 + HALF)
    return np.moveaxis(found, 0, plan.axis)
