"""A layer being learned: its codes by one of the variables, and its bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ptq.execute.differentiable import round_through
from ptq.integer.program import Convolve, Gemm
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.parametrisations import make_variable


class Learned:
    """Codes and a bias, which is learned in units of the output's codes."""

    def __init__(self, layer: Layer, variable: str, device: torch.device) -> None:
        self.layer = layer
        self.variable = make_variable(layer, variable, device)
        channels = len(layer.plan.scale)
        bias = layer.step.bias
        start = np.zeros(channels, np.int32) if bias is None else bias
        self.ratio = torch.tensor(layer.ratio, device=device)
        self.bias = torch.tensor(start.astype(np.float32), device=device)
        self.shift = torch.zeros(channels, device=device, requires_grad=True)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Leaf tensors with their kind."""
        yield from self.variable.parameters().items()
        yield "bias", self.shift

    def overrides(self, unit: Tensor | None = None) -> dict[str, Tensor]:
        """What replaces the step's own weight and bias while learning.

        unit: logarithm of a factor on the accumulator's unit, which the bias is counted in.
        """
        name, weight = self.layer.step.name, self.variable.weight()
        bias = self.bias + self.shift / self.ratio
        bias = round_through(bias if unit is None else bias * (-unit).exp())
        return {f"{name}.weight": weight.T if self.layer.turned else weight, f"{name}.bias": bias}

    def exact_bias(self) -> npt.NDArray[np.float64]:
        """The learned bias in accumulator units of the layer's own scales: [channels]."""
        bias = (self.bias + self.shift / self.ratio).detach()
        return bias.cpu().numpy().astype(np.float64)

    def step(self) -> Convolve | Gemm:
        """The step with what was learned, on the scales that it has."""
        plan = self.variable.kept()
        weight = plan.decode()
        if self.layer.turned:
            weight = np.ascontiguousarray(weight.T)
        bias = np.rint(self.exact_bias()).astype(np.int32)
        return replace(self.layer.step, weight=weight, bias=bias, stored=plan)


def start_learning(layers: Sequence[Layer], variable: str, device: torch.device) -> list[Learned]:
    """Every layer at the plan's codes and bias."""
    return [Learned(layer, variable, device) for layer in layers]
