"""Variables of affine uniform grids: a weight is its code minus the zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ptq.passes.learning.layers import Layer
from ptq.plan import WeightPlan

HALF = 0.499
NEAR = 0.3
"""A latent starts at most so far from its code: the first steps of Adam, whose size does not depend
on the gradient's, must not turn every close call at once (measured: that undoes the closed form).
"""
STRETCH = (-0.1, 1.1)


class Latent:
    """A free real number a weight; its code is the nearest integer (straight-through).

    It starts at the float weight, moved as little as needed to be NEAR the plan's code: learning
    starts at the closed form's result, and weights whose rounding is a close call turn first.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer = layer
        exact, start, zero_point = positions(layer)
        start = np.clip(exact, start - NEAR, start + NEAR)
        self.latent = torch.tensor(start, device=device, requires_grad=True)
        self.zero_point = torch.tensor(zero_point, device=device)
        self.top = layer.plan.grid.size - 1

    def parameters(self) -> Mapping[str, Tensor]:
        """The latents."""
        return {"codes": self.latent}

    def weight(self) -> Tensor:
        """The nearest levels; the gradient passes through the rounding."""
        return self.latent + (self._codes() - self.latent).detach() - self.zero_point

    def penalty(self, beta: float) -> Tensor | None:
        """None: codes are integers all the time."""
        return None

    def settle(self) -> None:
        """Back to where a code is near."""
        self.latent.data.clamp_(-HALF, self.top + HALF)

    def kept(self) -> WeightPlan:
        """The nearest codes."""
        return with_codes(self.layer.plan, self._codes())

    def _codes(self) -> Tensor:
        return self.latent.detach().round().clamp(0, self.top)


class AdaRound:
    """Between two neighbouring codes by a rectified sigmoid (arXiv 2004.10568, eq. 23 to 25).

    The two are the plan's code and its neighbour towards the float weight.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer = layer
        exact, start, zero_point = positions(layer)
        low = np.where(exact >= start, start, start - 1)
        low = np.clip(low, 0, layer.plan.grid.size - 2)
        share = np.clip(exact - low, 0.01, 0.99)
        gamma, zeta = STRETCH
        v = -np.log((zeta - gamma) / (share - gamma) - 1)
        self.low = torch.tensor(low, device=device)
        self.gate = torch.tensor(v.astype(np.float32), device=device, requires_grad=True)
        self.zero_point = torch.tensor(zero_point, device=device)

    def parameters(self) -> Mapping[str, Tensor]:
        """What the sigmoid is taken of, V in the paper."""
        return {"codes": self.gate}

    def weight(self) -> Tensor:
        """Somewhere between the two levels."""
        return self.low + self._share() - self.zero_point

    def penalty(self, beta: float) -> Tensor | None:
        """sum(1 - |2 share - 1|^beta), eq. 24."""
        return (1 - (2 * self._share() - 1).abs().pow(beta)).sum()

    def settle(self) -> None:
        """Nothing: a sigmoid has no end."""

    def kept(self) -> WeightPlan:
        """The nearer of the two codes."""
        return with_codes(self.layer.plan, self.low + (self.gate.detach() >= 0))

    def _share(self) -> Tensor:
        """Which part of the way to the upper code: 0 .. 1."""
        gamma, zeta = STRETCH
        return (torch.sigmoid(self.gate) * (zeta - gamma) + gamma).clamp(0, 1)


def positions(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The float weight in code units, the plan's codes, and zero points that broadcast: float32."""
    plan = layer.plan
    zero_point = layer.by_channel(plan.zero_point)
    exact = layer.exact.astype(np.float64) + zero_point
    found = exact, plan.require_codes(), zero_point
    return tuple(np.ascontiguousarray(x, np.float32) for x in found)  # type: ignore[return-value]


def with_codes(plan: WeightPlan, codes: Tensor) -> WeightPlan:
    """The plan with other codes."""
    return replace(plan, codes=codes.to(torch.uint8).cpu().numpy())
