"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, optional
from ptq.execute.differentiable.tensors import torch_type

FLOAT = 1


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(1, -1, *[1] * (x.ndim - 2))


def _stash(node: Node) -> torch.dtype:
    """The type that means and variances are computed in."""
    return torch_type(node.integer("stash_type", FLOAT))


def _standardise(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + epsilon), the mean, and the inverse deviation."""
    centre = x.mean(axes, keepdim=True)
    apart = x - centre
    inverse = (apart.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return apart * inverse, centre, inverse


def _batch_normalization(operands: Operands, node: Node) -> tuple[Tensor, ...]:
    x, scale, bias, mean, var = (need(operands, i) for i in range(5))
    epsilon, momentum = node.real("epsilon", 1e-5), node.real("momentum", 0.9)
    scale, bias = (_per_channel(v, x).to(x.dtype) for v in (scale, bias))
    if not node.integer("training_mode", 0):
        inverse = (var + epsilon).rsqrt()
        centred = x - _per_channel(mean, x).to(x.dtype)
        return (centred * _per_channel(inverse, x).to(x.dtype) * scale + bias,)
    axes = [0, *range(2, x.ndim)]
    y, _, _ = _standardise(x, axes, epsilon)
    now = x.mean(axes).to(mean.dtype), x.var(axes, correction=0).to(var.dtype)
    running = [
        old * momentum + new * (1 - momentum) for old, new in zip((mean, var), now, strict=True)
    ]
    return (y * scale + bias, *running)


def _instance_normalization(operands: Operands, node: Node) -> Tensor:
    x, scale, bias = (need(operands, i) for i in range(3))
    y, _, _ = _standardise(x, list(range(2, x.ndim)), node.real("epsilon", 1e-5))
    return y * _per_channel(scale, x) + _per_channel(bias, x)


def _group_normalization(operands: Operands, node: Node) -> Tensor:
    """Scale and bias are one a group before opset 21 and one a channel since."""
    x, scale, bias = (need(operands, i) for i in range(3))
    groups = node.integer("num_groups", 1)
    rows = x.to(_stash(node)).reshape(len(x), groups, -1)
    y = _standardise(rows, [2], node.real("epsilon", 1e-5))[0].to(x.dtype)
    if len(scale) == groups:
        return (y * scale[:, None] + bias[:, None]).reshape(x.shape)
    return y.reshape(x.shape) * _per_channel(scale, x) + _per_channel(bias, x)


def _layer_normalization(operands: Operands, node: Node) -> tuple[Tensor, ...]:
    x, scale, bias = need(operands, 0), need(operands, 1), optional(operands, 2)
    axes = list(range(node.integer("axis", -1) % x.ndim, x.ndim))
    y, centre, inverse = _standardise(x.to(_stash(node)), axes, node.real("epsilon", 1e-5))
    y = y.to(x.dtype) * scale
    return y if bias is None else y + bias, centre, inverse


def _rms_normalization(operands: Operands, node: Node) -> Tensor:
    x, scale = need(operands, 0), need(operands, 1)
    axes = list(range(node.integer("axis", -1) % x.ndim, x.ndim))
    wide = x.to(_stash(node))
    inverse = (wide.square().mean(axes, keepdim=True) + node.real("epsilon", 1e-5)).rsqrt()
    return (wide * inverse).to(x.dtype) * scale


def _lrn(operands: Operands, node: Node) -> Tensor:
    x, size = need(operands, 0), node.integer("size", 1)
    alpha, beta = node.real("alpha", 1e-4), node.real("beta", 0.75)
    room = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size - 1 - (size - 1) // 2]
    near = functional.pad(x.square(), room).unfold(1, size, 1).sum(-1)
    return x / (node.real("bias", 1.0) + alpha / size * near) ** beta


def _mean_variance_normalization(operands: Operands, node: Node) -> Tensor:
    x, axes = need(operands, 0), node.integers("axes", [0, 2, 3])
    deviation = x.var(axes, correction=0, keepdim=True).sqrt()
    return (x - x.mean(axes, keepdim=True)) / (deviation + 1e-9)


NORMALIZATION: dict[str, Op] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
}
