"""The table of optimizers: name -> what makes one of parameter groups with learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Groups = list[dict[str, Any]]

BETAS = (0.9, 0.99)
"""A few hundred steps: the second moment must forget faster than 0.999 lets it."""
EPSILON = 1e-8


class SignSGD(Optimizer):
    """w -= lr * sign(gradient) (arXiv 1802.04434), as AutoRound learns rounding."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; there is no closure."""
        for tensor, group in _with_gradients(self):
            tensor.add_(tensor.grad.sign(), alpha=-group["lr"])  # type: ignore[union-attr]


class AdamP(Optimizer):
    """Adam whose step leaves the norm of a weight alone where the loss does (arXiv 2006.08217).

    The part of the step along w is taken out wherever cos(w, gradient) < delta / sqrt(dim w), seen
    by output channel first and over the whole tensor then.
    """

    def __init__(self, groups: Groups, delta: float = 0.1) -> None:
        super().__init__(groups, {"lr": 1e-3, "delta": delta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; there is no closure."""
        for tensor, group in _with_gradients(self):
            state = self.state[tensor]
            if not state:
                state |= {"count": 0, "m": torch.zeros_like(tensor), "v": torch.zeros_like(tensor)}
            state["count"] += 1
            gradient: Any = tensor.grad
            state["m"].lerp_(gradient, 1 - BETAS[0])
            state["v"].lerp_(gradient.square(), 1 - BETAS[1])
            m = state["m"] / (1 - BETAS[0] ** state["count"])
            v = state["v"] / (1 - BETAS[1] ** state["count"])
            step = m / (v.sqrt() + EPSILON)
            if tensor.ndim > 1:
                step = _projected(tensor, gradient, step, group["delta"])
            tensor.add_(step, alpha=-group["lr"])


def _projected(w: Tensor, gradient: Tensor, step: Tensor, delta: float) -> Tensor:
    """The step without its part along w, by rows or as a whole, where w only sets a scale."""
    for rows in (len(w), 1):
        x, g, s = (t.reshape(rows, -1) for t in (w, gradient, step))
        cosine = torch.nn.functional.cosine_similarity(x, g, dim=1, eps=EPSILON).abs()
        if cosine.max() < delta / x.shape[1] ** 0.5:
            unit = x / (x.norm(dim=1, keepdim=True) + EPSILON)
            projected: Tensor = (s - unit * (unit * s).sum(1, keepdim=True)).reshape(w.shape)
            return projected
    return step


def _with_gradients(optimizer: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    return [(t, g) for g in optimizer.param_groups for t in g["params"] if t.grad is not None]


OPTIMIZERS: dict[str, Callable[[Groups], Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=BETAS, eps=EPSILON),
    "radam": lambda groups: torch.optim.RAdam(groups, betas=BETAS, eps=EPSILON),
    "adamp": AdamP,
    "signsgd": SignSGD,
}
