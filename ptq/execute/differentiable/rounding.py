"""Rounding and tables with gradients, and what an activation quantiser may do instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Quantiser = Callable[[str, Tensor, Tensor], Tensor]
"""(name, unrounded, rounded) -> codes: what an activation quantiser hands on.

Both tensors are in code units and clamped to the codes that exist; `rounded` carries the
straight-through gradient.
"""


def hard(name: str, unrounded: Tensor, rounded: Tensor) -> Tensor:
    """The quantiser of the integer program: every element is rounded."""
    return rounded


def drop_quantization(probability: float, generator: torch.Generator | None = None) -> Quantiser:
    """Leave elements unrounded with this probability (QDrop, arXiv 2203.05740, eq. 8).

    generator: where the choices come from; on the device of the tensors.
    """

    def mix(name: str, unrounded: Tensor, rounded: Tensor) -> Tensor:
        draw = torch.rand(rounded.shape, generator=generator, device=rounded.device)
        return torch.where(draw < probability, unrounded, rounded)

    return mix


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity. x must be finite."""
    return x + (x.round() - x).detach()


def interpolate(table: Tensor, x: Tensor, axis: int | None = None) -> Tensor:
    """table[x], linear between codes; x: codes in 0 .. 255 that need not be integers.

    table: [256], or [channels, 256] with the channels of x along `axis`. At integers this is the
    entry itself. The gradient to x is the central difference at the nearest code.
    """
    point = x.detach()
    left = point.floor().clamp(0, 254).to(torch.int64)
    near = point.round().clamp(0, 255).to(torch.int64)
    below, above = (near - 1).clamp(min=0), (near + 1).clamp(max=255)
    pick = _picker(table, x, axis)
    start = pick(left)
    value = start + (point - left) * (pick(left + 1) - start)
    slope = ((pick(above) - pick(below)) / (above - below)).detach()
    return value + slope * (x - point)


def _picker(table: Tensor, x: Tensor, axis: int | None) -> Callable[[Tensor], Tensor]:
    if table.ndim == 1 or axis is None:
        return lambda index: table[index]
    shape = [1] * x.ndim
    shape[axis] = -1
    channel = torch.arange(len(table), device=x.device).reshape(shape)
    return lambda index: table[channel, index]
