"""Pooling."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.convolution import CONVOLVE
from ptq.execute.differentiable.nodes import Node, Op, Operands, need
from ptq.execute.differentiable.windows import Window, window

MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _window(x: Tensor, node: Node) -> tuple[Window, Window]:
    """The window as declared, and with the end padding that ceil_mode needs."""
    if not 1 <= x.ndim - 2 <= 3:
        raise node.refuse(f"{x.ndim - 2} spatial axes", "1 to 3")
    w = window(node, x.shape[2:], node.integers("kernel_shape"))
    if not node.integer("ceil_mode", 0) or node.text("auto_pad", "NOTSET") != "NOTSET":
        return w, w
    after = []
    for i, size in enumerate(x.shape[2:]):
        room = size + w.before[i] + w.after[i] - w.extent[i]
        steps = -(-room // w.strides[i])
        if steps * w.strides[i] >= size + w.before[i]:
            steps -= 1  # a window that would start in the end padding is dropped
        after.append(steps * w.strides[i] + w.extent[i] - size - w.before[i])
    return w, replace(w, after=after)


def _max_pool(operands: Operands, node: Node) -> tuple[Tensor, ...]:
    x = need(operands, 0)
    _, w = _window(x, node)
    real = x if x.is_floating_point() else x.to(torch.float32)
    padded = functional.pad(real, w.room, value=-math.inf)
    pool = MAX_POOL[w.rank]
    if node.outputs < 2:
        return (pool(padded, w.kernel, w.strides, 0, w.dilations).to(x.dtype),)
    y, where = pool(padded, w.kernel, w.strides, 0, w.dilations, return_indices=True)
    return y.to(x.dtype), _flat_index(x, padded, where, w, node)


def _flat_index(x: Tensor, padded: Tensor, where: Tensor, w: Window, node: Node) -> Tensor:
    """Indices into the flattened unpadded tensor from those into one padded image."""
    position: list[Tensor] = []
    for axis in reversed(range(w.rank)):
        position.insert(0, where % padded.shape[2 + axis] - w.before[axis])
        where = where // padded.shape[2 + axis]
    image = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    sizes = list(x.shape[2:])
    if node.integer("storage_order", 0):
        position, sizes = position[::-1], sizes[::-1]
    index = image.reshape(*x.shape[:2], *[1] * w.rank)
    for part, size in zip(position, sizes, strict=True):
        index = index * size + part
    return index


def _window_sum(x: Tensor, w: Window) -> Tensor:
    """Sums over the windows of a padded tensor."""
    if all(d == 1 for d in w.dilations):
        return AVERAGE_POOL[w.rank](x, w.kernel, w.strides) * math.prod(w.kernel)
    images = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *w.kernel, dtype=x.dtype, device=x.device)
    y = CONVOLVE[w.rank](images, ones, None, w.strides, [0] * w.rank, w.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _average_pool(operands: Operands, node: Node) -> Tensor:
    """Sum over the window, divided by how many of its elements count."""
    x = need(operands, 0)
    declared, w = _window(x, node)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    room = w.room
    if node.integer("count_include_pad", 0):
        counted = functional.pad(counted, declared.room, value=1)
        room = replace(
            w,
            before=[0] * w.rank,
            after=[a - b for a, b in zip(w.after, declared.after, strict=True)],
        ).room
    divisor = _window_sum(functional.pad(counted, room), w)
    return _window_sum(functional.pad(x, w.room), w) / divisor


def _lp_pool(operands: Operands, node: Node) -> Tensor:
    x, p = need(operands, 0), node.integer("p", 2)
    _, w = _window(x, node)
    powers = x.abs() if p == 1 else x.abs() ** p
    total = _window_sum(functional.pad(powers, w.room), w)
    return total if p == 1 else torch.pow(total, 1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_average_pool(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return x.mean(_spatial(x), keepdim=True)


def _global_max_pool(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return x.amax(_spatial(x), keepdim=True)


def _global_lp_pool(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    p = node.integer("p", 2)
    norm: Tensor = torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)
    return norm


POOLING: dict[str, Op] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
