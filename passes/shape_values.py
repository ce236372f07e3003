"""Evaluate the integer vectors that shapes are computed with; a dimension may have only a name.

An entry of a vector is a number, the name of a symbolic dimension, or None (unknown). Two equal
names are one size, as ONNX says of dim_param.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ptq.passes.rewriting import constant, input_at, int_attribute

Entries = list[int | str | None]
_DEPTH_LIMIT = 32


def dims(value: ir.Value | None) -> Entries:
    """The dimensions of a value as entries; empty when its rank is unknown."""
    if value is None or value.shape is None:
        return []
    return [size if isinstance(size, int) else size.value for size in value.shape]


def evaluate(value: ir.Value | None, depth: int) -> Entries | None:
    """The entries of an integer vector (or scalar, as one entry); None when out of reach."""
    if value is None or depth > _DEPTH_LIMIT:
        return None
    array = constant(value)
    if array is not None:
        return [int(entry) for entry in array.reshape(-1)] if array.ndim <= 1 else None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(node, depth + 1)


def _shape(node: ir.Node, depth: int) -> Entries | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    entries = dims(source)
    end = node.attributes.get("end")
    return entries[int_attribute(node, "start", 0) : end.as_int() if end else None]


def _gather(node: ir.Node, depth: int) -> Entries | None:
    source, index = evaluate(node.inputs[0], depth), constant(node.inputs[1])
    if source is None or index is None or index.ndim > 1:
        return None
    picks = [int(i) for i in index.reshape(-1)]
    return (
        [source[i] for i in picks] if all(-len(source) <= i < len(source) for i in picks) else None
    )


def _concat(node: ir.Node, depth: int) -> Entries | None:
    parts = [evaluate(value, depth) for value in node.inputs]
    return None if any(p is None for p in parts) else [e for p in parts if p is not None for e in p]


def _same(node: ir.Node, depth: int) -> Entries | None:
    return evaluate(node.inputs[0], depth)


def _slice(node: ir.Node, depth: int) -> Entries | None:
    source = evaluate(node.inputs[0], depth)
    bounds = [constant(input_at(node, index)) for index in (1, 2)]
    step = constant(input_at(node, 4))
    if source is None or bounds[0] is None or bounds[1] is None:
        return None
    if input_at(node, 4) is not None and (step is None or step.item() != 1):
        return None
    return source[int(bounds[0].item()) : int(bounds[1].item())]


_RULES: dict[str, Callable[[ir.Node, int], Entries | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Cast": _same,
    "Identity": _same,
    "Squeeze": _same,
    "Unsqueeze": _same,
}
