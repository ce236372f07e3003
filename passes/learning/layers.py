"""What is learned in a layer: which code each weight gets, and the bias.

Everything is in the units of the integer program, on the scales of the plan: weights are codes
minus their zero point, biases are accumulator units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ptq.execute.differentiable import round_through
from ptq.integer.program import Convolve, Gemm, Step
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.plan import Plan, WeightPlan

HALF = 0.499
NEAR = 0.3
"""A latent starts at most so far from its code: the first steps of Adam, whose size does not depend
on the gradient's, must not turn every close call at once (measured: that undoes the closed form).
"""
STRETCH = (-0.1, 1.1)


@dataclass(frozen=True)
class Layer:
    """A weighted step whose codes can be learned.

    exact: the float weight in code units, start: the plan's codes, both float32 in the step's
    layout; top: the largest code.
    zero_point: in a shape that broadcasts over the weight; ratio: [channels] float32.
    """

    unit: Unit
    step: Convolve | Gemm
    exact: npt.NDArray[np.float32]
    start: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.float32]
    top: int
    ratio: npt.NDArray[np.float32]


def learnable_layers(steps: Sequence[Step], units: Sequence[Unit], plan: Plan) -> list[Layer]:
    """Layers on affine uniform grids; the codes of others stay as they are."""
    by_name = {step.name: step for step in steps}
    found = []
    for unit in units:
        step, weight = by_name.get(unit.name), plan.weights.get(unit.name)
        if isinstance(step, Convolve | Gemm) and weight is not None and _affine(weight):
            found.append(_layer(unit, step, weight))
    return found


def _affine(weight: WeightPlan) -> bool:
    return weight.grid.uniform and not weight.grid.half and weight.block_multiplier is None


def _layer(unit: Unit, step: Convolve | Gemm, weight: WeightPlan) -> Layer:
    shape = [1] * weight.require_codes().ndim
    shape[unit_axis(unit)] = -1
    zero_point = weight.zero_point.astype(np.float64).reshape(shape)
    exact = unit_weight(unit) / weight.scale.astype(np.float64).reshape(shape) + zero_point
    flipped = isinstance(step, Gemm) and step.transposed
    return Layer(
        unit,
        step,
        exact=_turned(exact, flipped),
        start=_turned(weight.require_codes(), flipped),
        zero_point=_turned(zero_point, flipped),
        top=weight.grid.size - 1,
        ratio=step.requantizer.ratio,
    )


def _turned(array: npt.NDArray[np.generic], flipped: bool) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(array.T if flipped else array, np.float32)


class Variable(Protocol):
    """How codes depend on what is learned."""

    parameter: Tensor

    def soft(self) -> Tensor:
        """Codes to compute with while learning."""

    def hard(self) -> Tensor:
        """The codes that are kept."""

    def penalty(self, beta: float) -> Tensor | None:
        """What drives soft codes to integers, or None if they are integers anyway."""

    def settle(self) -> None:
        """After a step of the optimizer: back into the range that exists."""


class Latent:
    """A free real number a weight; its code is the nearest integer (straight-through).

    It starts at the float weight, moved as little as needed to be NEAR the plan's code: learning
    starts at the closed form's result, and weights whose rounding is a close call turn first.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        start = np.clip(layer.exact, layer.start - NEAR, layer.start + NEAR)
        self.parameter = torch.tensor(start, device=device, requires_grad=True)
        self.top = layer.top

    def soft(self) -> Tensor:
        """The latent, rounded; its gradient passes."""
        return self.parameter + (self.hard() - self.parameter).detach()

    def hard(self) -> Tensor:
        """The nearest code."""
        return self.parameter.detach().round().clamp(0, self.top)

    def penalty(self, beta: float) -> Tensor | None:
        """None: codes are integers all the time."""
        return None

    def settle(self) -> None:
        """Back to where a code is near."""
        self.parameter.data.clamp_(-HALF, self.top + HALF)


class AdaRound:
    """Between two neighbouring codes by a rectified sigmoid (arXiv 2004.10568, eq. 23 to 25).

    The two are the plan's code and its neighbour towards the float weight.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        low = np.where(layer.exact >= layer.start, layer.start, layer.start - 1)
        low = np.clip(low, 0, layer.top - 1)
        share = np.clip(layer.exact - low, 0.01, 0.99)
        gamma, zeta = STRETCH
        v = -np.log((zeta - gamma) / (share - gamma) - 1)
        self.low = torch.tensor(low, device=device)
        self.parameter = torch.tensor(v.astype(np.float32), device=device, requires_grad=True)

    def share(self) -> Tensor:
        """Which part of the way to the upper code: 0 .. 1."""
        gamma, zeta = STRETCH
        return (torch.sigmoid(self.parameter) * (zeta - gamma) + gamma).clamp(0, 1)

    def soft(self) -> Tensor:
        """Somewhere between the two codes."""
        return self.low + self.share()

    def hard(self) -> Tensor:
        """The nearer of the two codes."""
        return self.low + (self.parameter.detach() >= 0)

    def penalty(self, beta: float) -> Tensor | None:
        """sum(1 - |2 share - 1|^beta), eq. 24."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def settle(self) -> None:
        """Nothing: a sigmoid has no end."""


VARIABLES: dict[str, type[Latent] | type[AdaRound]] = {"latent": Latent, "adaround": AdaRound}


class Learned:
    """A layer being learned: its codes and a bias in units of the output's codes."""

    def __init__(self, layer: Layer, variable: str, device: torch.device) -> None:
        self.layer = layer
        self.codes: Variable = VARIABLES[variable](layer, device)
        self.zero_point = torch.tensor(layer.zero_point, device=device)
        bias = layer.step.bias
        channels = layer.step.weight.shape[0 if isinstance(layer.step, Convolve) else -1]
        start = np.zeros(channels, np.int32) if bias is None else bias
        self.ratio = torch.tensor(layer.ratio, device=device)
        self.bias = torch.tensor(start.astype(np.float32), device=device)
        self.shift = torch.zeros(channels, device=device, requires_grad=True)

    def overrides(self) -> dict[str, Tensor]:
        """What replaces the step's own weight and bias while learning."""
        name = self.layer.step.name
        bias = round_through(self.bias + self.shift / self.ratio)
        return {f"{name}.weight": self.codes.soft() - self.zero_point, f"{name}.bias": bias}

    def result(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Codes in the step's layout, and the integer bias."""
        bias = (self.bias + self.shift / self.ratio).detach().round()
        return self.codes.hard().cpu().numpy(), bias.cpu().numpy().astype(np.int32)
