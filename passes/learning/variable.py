"""What a parametrisation of a weight's codes is to the engine that learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ptq.passes.learning.layers import Layer
    from ptq.plan import WeightPlan


class Variable(Protocol):
    """How one layer's codes depend on what is learned.

    Everything is in the layout of the float weight; `Learned` turns it into the step's.
    """

    def parameters(self) -> Mapping[str, Tensor]:
        """Leaf tensors by their kind ('codes', ...): each kind has a learning rate of its own."""

    def weight(self) -> Tensor:
        """The weight to compute with while learning: int8 units, any real numbers."""

    def penalty(self, beta: float) -> Tensor | None:
        """What drives soft weights to levels, or None if they are levels anyway."""

    def settle(self) -> None:
        """After a step of the optimizer: back into the range that exists."""

    def kept(self) -> WeightPlan:
        """The layer's plan with the codes, and whatever else was learned."""


Make = Callable[["Layer", torch.device], Variable]


class Fixed:
    """Codes that stay: only the layer's bias is learned."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.plan = layer.plan
        self.integers = torch.tensor(self.plan.decode().astype(np.float32), device=device)

    def parameters(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def weight(self) -> Tensor:
        """The plan's levels."""
        return self.integers

    def penalty(self, beta: float) -> Tensor | None:
        """None: they are levels."""
        return None

    def settle(self) -> None:
        """Nothing moves."""

    def kept(self) -> WeightPlan:
        """The plan."""
        return self.plan
