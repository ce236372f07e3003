"""What an operator's function sees of its node, and how it declines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import Tensor

from ptq.errors import UnsupportedModelError

Operands = Sequence[Tensor | None]
Op = Callable[[Operands, "Node"], Tensor | Sequence[Tensor]]
OpTable = Mapping[str, Op]


@dataclass(frozen=True)
class Node:
    """A node without its operands.

    key: the operator, 'Conv', or 'com.microsoft::QuickGelu' outside ONNX's own domain.
    opset: version of ONNX's own domain that the model imports.
    outputs: how many outputs the node has (names may be empty).
    """

    name: str
    key: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    @staticmethod
    def of(node: ir.Node, opset: int) -> Node:
        """The node as operators' functions see it."""
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        key = op_key(node.op_type, node.domain)
        return Node(str(node.name), key, attributes, opset, len(node.outputs))

    def integer(self, name: str, default: int) -> int:
        """An INT attribute, or the default."""
        return int(self.attributes.get(name, default))

    def real(self, name: str, default: float) -> float:
        """A FLOAT attribute, or the default."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A STRING attribute, or the default."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An INTS attribute, or the default."""
        return [int(v) for v in self.attributes.get(name, default)]

    def refuse(self, got: str, wanted: str) -> UnsupportedModelError:
        """The error to raise for what this operator's function cannot do."""
        return UnsupportedModelError(
            f"{self.name or self.key} ({self.key}): {got}; the differentiable executor takes "
            f"{wanted}: leave this node out of the block that is learned"
        )


def op_key(op_type: str, domain: str) -> str:
    """Name of an operator in the tables."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def need(operands: Operands, position: int) -> Tensor:
    """An operand that ONNX requires.

    Raises:
        UnsupportedModelError: it is missing.
    """
    x = optional(operands, position)
    if x is None:
        raise UnsupportedModelError(f"operand {position} is missing; ONNX requires it")
    return x


def optional(operands: Operands, position: int) -> Tensor | None:
    """An operand, or None where the node has none."""
    return operands[position] if position < len(operands) else None


def present(operands: Operands) -> list[Tensor]:
    """The operands that are there, of a variadic operator."""
    return [x for x in operands if x is not None]


def host_integers(x: Tensor | None) -> list[int] | None:
    """An integer operand (shape, axes, pads) as Python numbers."""
    return None if x is None else [int(v) for v in x.reshape(-1).tolist()]
