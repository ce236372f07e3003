"""A layer being learned: its codes by one of the variables, and its bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ptq.execute.differentiable import round_through
from ptq.integer.program import Convolve, Gemm
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.parametrisations import VARIABLES, family


class Learned:
    """Codes and a bias, which is learned in units of the output's codes."""

    def __init__(self, layer: Layer, variable: str, device: torch.device) -> None:
        self.layer = layer
        self.variable = VARIABLES[family(layer.plan), variable](layer, device)
        channels = len(layer.plan.scale)
        bias = layer.step.bias
        start = np.zeros(channels, np.int32) if bias is None else bias
        self.ratio = torch.tensor(layer.ratio, device=device)
        self.bias = torch.tensor(start.astype(np.float32), device=device)
        self.shift = torch.zeros(channels, device=device, requires_grad=True)

    def parameters(self) -> Mapping[str, Tensor]:
        """Leaf tensors by kind."""
        return {**self.variable.parameters(), "bias": self.shift}

    def overrides(self) -> dict[str, Tensor]:
        """What replaces the step's own weight and bias while learning."""
        name, weight = self.layer.step.name, self.variable.weight()
        bias = round_through(self.bias + self.shift / self.ratio)
        return {f"{name}.weight": weight.T if self.layer.turned else weight, f"{name}.bias": bias}

    def step(self) -> Convolve | Gemm:
        """The step with what was learned."""
        plan = self.variable.kept()
        weight = plan.decode()
        if self.layer.turned:
            weight = np.ascontiguousarray(weight.T)
        bias = (self.bias + self.shift / self.ratio).detach().round().cpu().numpy()
        return replace(self.layer.step, weight=weight, bias=bias.astype(np.int32), stored=plan)


def start_learning(layers: Sequence[Layer], variable: str, device: torch.device) -> list[Learned]:
    """The layers that this variable exists for."""
    known = [layer for layer in layers if (family(layer.plan), variable) in VARIABLES]
    return [Learned(layer, variable, device) for layer in known]
