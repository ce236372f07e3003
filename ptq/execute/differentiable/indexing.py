"""Operators that read or write elements by index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, optional

REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


def _positive(index: Tensor, size: int) -> Tensor:
    """Indices counted from the front, int64."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def _gather(operands: Operands, node: Node) -> Tensor:
    x, index = need(operands, 0), need(operands, 1)
    axis = node.integer("axis", 0) % x.ndim
    flat = _positive(index, x.shape[axis]).reshape(-1)
    picked = x.index_select(axis, flat)
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(operands: Operands, node: Node) -> Tensor:
    x, axis = need(operands, 0), node.integer("axis", 0)
    return x.gather(axis, _positive(need(operands, 1), x.shape[axis]))


def _gather_nd(operands: Operands, node: Node) -> Tensor:
    x, index, batch = need(operands, 0), need(operands, 1), node.integer("batch_dims", 0)
    lead, depth = list(x.shape[:batch]), index.shape[batch:-1]
    rows = x.reshape(math.prod(lead), *x.shape[batch:])
    flat = index.to(torch.int64).reshape(math.prod(lead), -1, index.shape[-1])
    first = torch.arange(len(rows), device=x.device)[:, None].expand(flat.shape[:2])
    picked = rows[(first, *flat.unbind(-1))]
    return picked.reshape((*lead, *depth, *picked.shape[2:]))


def _scatter(x: Tensor, axis: int, index: Tensor, updates: Tensor, node: Node) -> Tensor:
    reduction = node.text("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction == "add":
        return x.scatter_add(axis, index, updates)
    if reduction not in REDUCE:
        raise node.refuse(f"reduction={reduction}", "'none', 'add', 'mul', 'max' or 'min'")
    return x.scatter_reduce(axis, index, updates, REDUCE[reduction])


def _scatter_elements(operands: Operands, node: Node) -> Tensor:
    x, axis = need(operands, 0), node.integer("axis", 0)
    index = _positive(need(operands, 1), x.shape[axis])
    return _scatter(x, axis, index, need(operands, 2), node)


def _scatter_nd(operands: Operands, node: Node) -> Tensor:
    """Rows of x flattened over the indexed axes, then a scatter along one axis."""
    x, index, updates = (need(operands, i) for i in range(3))
    depth = index.shape[-1]
    sizes = x.shape[:depth]
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for size, part in zip(sizes, index.unbind(-1), strict=True):
        flat = flat * size + _positive(part, size)
    rows = x.reshape(math.prod(sizes), -1)
    flat = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    return _scatter(rows, 0, flat, updates.reshape(flat.shape), node).reshape(x.shape)


def _tensor_scatter(operands: Operands, node: Node) -> Tensor:
    """The update of a key or value cache, one write position a sample."""
    cache, update, start = need(operands, 0), need(operands, 1), optional(operands, 2)
    axis = node.integer("axis", -2) % cache.ndim
    step = torch.arange(update.shape[axis], device=cache.device)[None]
    index = step.expand(len(cache), -1) if start is None else step + start[:, None]
    if node.text("mode", "linear") == "circular":
        index = index % cache.shape[axis]
    shape = [1] * cache.ndim
    shape[0], shape[axis] = index.shape
    return cache.scatter(axis, index.reshape(shape).expand(update.shape), update)


def _compress(operands: Operands, node: Node) -> Tensor:
    x, condition = need(operands, 0), need(operands, 1)
    axis = node.integer("axis", 0)
    if "axis" not in node.attributes:
        x = x.reshape(-1)
    return x.index_select(axis, condition.nonzero().reshape(-1))


INDEXING: dict[str, Op] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
}
