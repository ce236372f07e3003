"""Operators of one tensor, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, optional
from ptq.execute.differentiable.tensors import torch_type

SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda operands, node: function(need(operands, 0))


def _leaky_relu(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return torch.where(x < 0, node.real("alpha", 0.01) * x, x)


def _elu(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    # The inactive branch stays finite: its gradient would be 0 * inf.
    return torch.where(x < 0, node.real("alpha", 1.0) * torch.expm1(x.clamp(max=0)), x)


def _selu(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    alpha, gamma = node.real("alpha", SELU_ALPHA), node.real("gamma", SELU_GAMMA)
    return gamma * torch.where(x <= 0, alpha * torch.expm1(x.clamp(max=0)), x)


def _celu(operands: Operands, node: Node) -> Tensor:
    x, alpha = need(operands, 0), node.real("alpha", 1.0)
    return x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0) / alpha)


def _thresholded_relu(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return torch.where(x > node.real("alpha", 1.0), x, torch.zeros_like(x))


def _hard_sigmoid(operands: Operands, node: Node) -> Tensor:
    return (need(operands, 0) * node.real("alpha", 0.2) + node.real("beta", 0.5)).clamp(0, 1)


def _hard_swish(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return x * (x / 6 + 0.5).clamp(0, 1)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def _gelu(operands: Operands, node: Node) -> Tensor:
    approximate = node.text("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise node.refuse(f"approximate={approximate}", "'none' or 'tanh'")
    return functional.gelu(need(operands, 0), approximate=approximate)


def _swish(default_alpha: float) -> Op:
    def swish(operands: Operands, node: Node) -> Tensor:
        x = need(operands, 0)
        return x * torch.sigmoid(node.real("alpha", default_alpha) * x)

    return swish


def _fast_gelu(operands: Operands, node: Node) -> Tensor:
    x, bias = need(operands, 0), optional(operands, 1)
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _shrink(operands: Operands, node: Node) -> Tensor:
    x, bias, lambd = need(operands, 0), node.real("bias", 0.0), node.real("lambd", 0.5)
    inner = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, inner).to(x.dtype)


def _clip(operands: Operands, node: Node) -> Tensor:
    """ONNX, like torch: where low > high, high wins."""
    x, low, high = need(operands, 0), optional(operands, 1), optional(operands, 2)
    if node.opset < 11:
        return x.clamp(node.real("min", -math.inf), node.real("max", math.inf))
    x = x if low is None else torch.maximum(x, low.reshape(()))
    return x if high is None else torch.minimum(x, high.reshape(()))


def _is_inf(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    positive, negative = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    found = torch.isposinf(x) if positive else torch.zeros_like(x, dtype=torch.bool)
    return found | torch.isneginf(x) if negative else found


def _prelu(operands: Operands, node: Node) -> Tensor:
    x, slope = need(operands, 0), need(operands, 1)
    return torch.where(x < 0, slope * x, x)


def _dropout(operands: Operands, node: Node) -> tuple[Tensor, ...]:
    """Nothing is dropped at inference; the mask is all true."""
    x, training = need(operands, 0), optional(operands, 2)
    if training is not None and bool(training):
        raise node.refuse("training_mode is true", "inference")
    return x, torch.ones_like(x, dtype=torch.bool)


def _cast(operands: Operands, node: Node) -> Tensor:
    return need(operands, 0).to(torch_type(node.integer("to", 0)))


def _cast_like(operands: Operands, node: Node) -> Tensor:
    return need(operands, 0).to(need(operands, 1).dtype)


def _bit_cast(operands: Operands, node: Node) -> Tensor:
    x, kind = need(operands, 0), torch_type(node.integer("to", 0))
    if x.element_size() != kind.itemsize:
        raise node.refuse(f"{x.dtype} as {kind}", "types of the same width")
    return x.view(kind)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": _mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

ELEMENTWISE: dict[str, Op] = {
    **{name: _unary(function) for name, function in PLAIN.items()},
    "BitCast": _bit_cast,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Swish": _swish(1.0),
    "ThresholdedRelu": _thresholded_relu,
    "com.microsoft::FastGelu": _fast_gelu,
    "com.microsoft::Gelu": _gelu,
    "com.microsoft::QuickGelu": _swish(1.702),
}
