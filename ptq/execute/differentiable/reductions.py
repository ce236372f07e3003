"""Operators along axes: reductions, running sums, softmax, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, host_integers, need, optional

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _axes(operands: Operands, node: Node, rank: int) -> list[int] | None:
    """Non-negative axes to reduce; None where the node asks to reduce nothing."""
    axes = host_integers(optional(operands, 1)) or node.integers("axes")
    if axes:
        return [axis % rank for axis in axes]
    return None if node.integer("noop_with_empty_axes", 0) else list(range(rank))


def _reduce(reduction: Reduction) -> Op:
    def run(operands: Operands, node: Node) -> Tensor:
        x = need(operands, 0)
        axes = _axes(operands, node, x.ndim)
        if axes is None:
            return x
        if not axes:  # a scalar: torch takes no axes as all, of which there are none
            return reduction(x.reshape(1), [0], False)
        return reduction(x, axes, bool(node.integer("keepdims", 1)))

    return run


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keep)
    return x.to(torch.float64).mean(axes, keep).to(x.dtype)


def _extreme(function: Callable[..., Tensor], largest: bool) -> Reduction:
    """Maximum or minimum; of nothing, the type's own end."""

    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return run(x.to(torch.uint8), axes, keep).to(torch.bool)
        if all(x.shape[axis] for axis in axes):
            return function(x, axes, keep)
        end = _lowest(x.dtype) if largest else _highest(x.dtype)
        return x.sum(axes, keep, dtype=x.dtype) + torch.tensor(end, dtype=x.dtype, device=x.device)

    return run


def _lowest(kind: torch.dtype) -> float:
    return -math.inf if kind.is_floating_point else torch.iinfo(kind).min


def _highest(kind: torch.dtype) -> float:
    return math.inf if kind.is_floating_point else torch.iinfo(kind).max


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
        return norm
    return x.square().sum(axes, keep, dtype=x.dtype).to(torch.float64).sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.square(), axes, keep)


def _arg(function: Callable[..., Tensor]) -> Op:
    """Index of the extreme; the first one, or the last with select_last_index."""

    def run(operands: Operands, node: Node) -> Tensor:
        x, axis = need(operands, 0), node.integer("axis", 0)
        last = node.integer("select_last_index", 0)
        best = function(x.flip(axis) if last else x, axis, bool(node.integer("keepdims", 1)))
        return x.shape[axis] - 1 - best if last else best

    return run


def _along(function: Callable[[Tensor, int], Tensor]) -> Op:
    """Softmax and its kin: before opset 13 the axis and all after it are one."""

    def run(operands: Operands, node: Node) -> Tensor:
        x = need(operands, 0)
        if node.opset >= 13:
            return function(x, node.integer("axis", -1))
        axis = node.integer("axis", 1) % max(x.ndim, 1)
        rows = math.prod(x.shape[:axis])
        return function(x.reshape(rows, -1), 1).reshape(x.shape)

    return run


def softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax; in 16 bits every step is rounded, as ONNX composes it."""
    if x.element_size() > 2:
        return functional.softmax(x, axis)
    e = (x - x.amax(axis, keepdim=True).detach()).exp()
    return e / e.sum(axis, keepdim=True)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    best = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, best, 1.0)


def _running(function: Callable[..., Tensor], start: int) -> Op:
    """CumSum and CumProd; `start` is what an exclusive one begins with."""

    def run(operands: Operands, node: Node) -> Tensor:
        x, (axis,) = need(operands, 0), host_integers(need(operands, 1)) or [0]
        axis = axis % x.ndim
        reverse = node.integer("reverse", 0)
        x = x.flip(axis) if reverse else x
        if node.integer("exclusive", 0):
            first = torch.full_like(x.narrow(axis, 0, 1), start)
            x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(x, axis, dtype=x.dtype)
        return y.flip(axis) if reverse else y

    return run


def _lp_normalization(operands: Operands, node: Node) -> Tensor:
    x, axis, p = need(operands, 0), node.integer("axis", -1), node.integer("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1, norm))


def _top_k(operands: Operands, node: Node) -> tuple[Tensor, Tensor]:
    """A stable sort: among equals the lower index comes first, as ONNX wants."""
    x, axis = need(operands, 0), node.integer("axis", -1)
    k = (host_integers(need(operands, 1)) or [0])[0] if node.opset >= 10 else node.integer("k", 0)
    largest = bool(node.integer("largest", 1))
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


REDUCTIONS: dict[str, Op] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumProd": _running(torch.cumprod, 1),
    "CumSum": _running(torch.cumsum, 0),
    "Hardmax": _along(_hardmax),
    "LogSoftmax": _along(functional.log_softmax),
    "LpNormalization": _lp_normalization,
    "ReduceL1": _reduce(_l1),
    "ReduceL2": _reduce(_l2),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_extreme(torch.amax, largest=True)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_extreme(torch.amin, largest=False)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(_sum_square),
    "Softmax": _along(softmax),
    "TopK": _top_k,
}
