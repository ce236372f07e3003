"""Rounding and tables with gradients, and what an activation quantiser may do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    """An activation that is about to be quantised, either way: in code units, clamped.

    rounded: with the straight-through gradient. Each is computed where it is called for.
    """

    unrounded: Callable[[], Tensor]
    rounded: Callable[[], Tensor]


Quantiser = Callable[[str, Rounding], Tensor]
"""(name, rounding) -> codes: what an activation quantiser hands on."""


def hard(name: str, rounding: Rounding) -> Tensor:
    """The quantiser of the integer program: every element is rounded."""
    return rounding.rounded()


def drop_quantization(probability: float, generator: torch.Generator | None = None) -> Quantiser:
    """Leave elements unrounded with this probability (QDrop, arXiv 2203.05740, eq. 8).

    generator: where the choices come from; on the device of the tensors.
    """
    if not probability:
        return hard

    def mix(name: str, rounding: Rounding) -> Tensor:
        rounded = rounding.rounded()
        draw = torch.rand(rounded.shape, generator=generator, device=rounded.device)
        return torch.where(draw < probability, rounding.unrounded(), rounded)

    return mix


def rounding_of(x: Tensor, zero_point: int, low: int, high: int) -> Rounding:
    """zero_point + round(x) or zero_point + x, within low .. high."""
    bounds = low - zero_point, high - zero_point

    def shifted(y: Tensor) -> Tensor:
        return y + zero_point if zero_point else y

    def rounded() -> Tensor:
        within: Tensor = _RoundWithin.apply(x, *bounds)  # type: ignore[no-untyped-call]
        return shifted(within)

    return Rounding(lambda: shifted(x.clamp(*bounds)), rounded)


class _RoundWithin(torch.autograd.Function):
    """clamp(round(x)) with the gradient of the clamp, in fewer passes than autograd takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.bounds)
        return passed, None, None


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
