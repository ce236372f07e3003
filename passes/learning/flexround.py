"""FlexRound: rounding learned by dividing (arXiv 2306.00317, eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ptq.execute.differentiable import round_through
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.uniform import NEAR, positions, with_codes
from ptq.plan import WeightPlan


class FlexRound:
    """level = round(w / e^(d2 + d3)): d2 for each weight, d3 for each output channel.

    The paper's common factor d1 is the layer's scale, which stays the plan's. Starts at the plan's
    codes as far as dividing can reach them: a weight never changes its sign.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer = layer
        exact, start, zero_point = positions(layer)
        exact, level = exact - zero_point, start - zero_point
        near = np.clip(exact, level - NEAR, level + NEAR)
        reachable = exact * near > 0
        divisor = np.log(np.where(reachable, exact, 1) / np.where(reachable, near, 1))
        rows = np.zeros(layer.by_channel(layer.plan.scale).shape, np.float32)
        self.exact = torch.tensor(exact, device=device)
        self.elements = torch.tensor(divisor.astype(np.float32), device=device, requires_grad=True)
        self.rows = torch.tensor(rows, device=device, requires_grad=True)
        low, high = -zero_point, layer.plan.grid.size - 1 - zero_point
        self.low, self.high = (torch.tensor(x, device=device) for x in (low, high))
        self.zero_point = torch.tensor(zero_point, device=device)

    def parameters(self) -> Mapping[str, Tensor]:
        """The logarithms d2 and d3."""
        return {"codes": self.elements, "rows": self.rows}

    def weight(self) -> Tensor:
        """The nearest levels of the divided weights."""
        divided = self.exact * (-(self.elements + self.rows)).exp()
        return round_through(torch.minimum(torch.maximum(divided, self.low), self.high))

    def penalty(self, beta: float) -> Tensor | None:
        """None: levels are integers all the time."""
        return None

    def settle(self) -> None:
        """Nothing: clipping keeps the codes."""

    def kept(self) -> WeightPlan:
        """The codes of the levels."""
        return with_codes(self.layer.plan, self.weight().detach() + self.zero_point)
