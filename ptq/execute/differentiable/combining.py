"""Operators of several tensors, element by element: arithmetic, comparison, logic, choice."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, present

Binary = Callable[[Tensor, Tensor], Tensor]


def _binary(function: Binary) -> Op:
    return lambda operands, node: function(need(operands, 0), need(operands, 1))


def _fold(function: Binary) -> Op:
    return lambda operands, node: functools.reduce(function, present(operands))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers truncate towards zero, as in C."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _modulo(operands: Operands, node: Node) -> Tensor:
    a, b = need(operands, 0), need(operands, 1)
    return torch.fmod(a, b) if node.integer("fmod", 0) else torch.remainder(a, b)


def _power(a: Tensor, b: Tensor) -> Tensor:
    """The result has the base's type whatever the exponent's."""
    if a.is_floating_point() or not b.is_floating_point():
        return torch.pow(a, b.to(a.dtype)) if a.is_floating_point() else torch.pow(a, b).to(a.dtype)
    return torch.pow(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)


def _mean(operands: Operands, node: Node) -> Tensor:
    tensors = present(operands)
    return functools.reduce(torch.add, tensors) / len(tensors)


def _shift(operands: Operands, node: Node) -> Tensor:
    a, b = need(operands, 0), need(operands, 1)
    left = node.text("direction", "") == "LEFT"
    wide, by = a.to(torch.int64), b.to(torch.int64)
    return (wide << by if left else wide >> by).to(a.dtype)


def _where(operands: Operands, node: Node) -> Tensor:
    return torch.where(need(operands, 0), need(operands, 1), need(operands, 2))


COMBINING: dict[str, Op] = {
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "BitShift": _shift,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Div": _binary(_divide),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Max": _fold(torch.maximum),
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "Mod": _modulo,
    "Mul": _binary(torch.mul),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_power),
    "Sub": _binary(torch.sub),
    "Sum": _fold(torch.add),
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
}
