"""What is minimised: the error of a block's float outputs, or what it does to the network's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Tensors = Mapping[str, Tensor]
Loss = Callable[[Tensors, Tensors], Tensor]
"""(found, wanted) by name -> what to minimise, relative to its scale so that rates carry over."""

TINY = 1e-12


def squared_error(found: Tensors, wanted: Tensors) -> Tensor:
    """Squared error over the energy, summed over the outputs."""
    return fisher_error({})(found, wanted)


def fisher_error(weights: Mapping[str, Array]) -> Loss:
    """Squared error weighted by the Fisher diagonal of each element (BRECQ, eq. 10).

    weights: by output, [1, ...] float32 with a mean of one; outputs without are not weighted.
    """
    known = {name: torch.from_numpy(array) for name, array in weights.items()}

    def loss(found: Tensors, wanted: Tensors) -> Tensor:
        parts = []
        for name, x in found.items():
            error, energy = (x - wanted[name]).square(), wanted[name].square()
            if name in known:
                weight = known[name].to(x.device)
                error, energy = error * weight, energy * weight
            parts.append(error.sum() / energy.sum().clamp(min=TINY))
        return torch.stack(parts).sum()

    return loss


def divergence(rest: Callable[[Tensors], Tensors]) -> Loss:
    """KL(float || quantised) of the network's outputs, the float rest of it after the block.

    rest: from the float tensors after a block to the network's outputs. Outputs that are no class
    scores [n, classes] count by their squared error.
    """

    def loss(found: Tensors, wanted: Tensors) -> Tensor:
        ends = rest({**wanted, **found})
        scores = {name: x for name, x in ends.items() if x.ndim == 2 and x.shape[1] > 1}
        others = {name: x for name, x in ends.items() if name not in scores}
        parts = [_kl(x, wanted[name]) for name, x in scores.items()]
        if others:
            parts.append(squared_error(others, wanted))
        return torch.stack(parts).sum()

    return loss


def _kl(found: Tensor, wanted: Tensor) -> Tensor:
    p, q = torch.log_softmax(wanted, 1), torch.log_softmax(found, 1)
    return (p.exp() * (p - q)).sum(1).mean()
