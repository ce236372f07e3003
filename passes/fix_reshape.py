"""Give Reshape a constant target where its computed target has at most one unknown number.

Exporters write a flatten as Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), [64])). Shape
arithmetic is integer work on the side that no accelerator runs; the target above is [0, 64], where 0
means "as in the input", and the batch stays dynamic.

The target is evaluated symbolically: an entry is a number, the name of a dimension, or None. A name
that the input has at the same place becomes 0; one other unknown entry becomes -1. Left alone: two
or more unknown entries, a computed 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    constant,
    input_at,
    int_attribute,
    is_op,
    remove_unused,
)

Entries = list[int | str | None]
_DEPTH_LIMIT = 32


def fix_reshape(graph: ir.Graph) -> int:
    """Make constant every Reshape target that can be; returns how many."""
    fixed = 0
    for node in graph:
        if not is_op(node, "Reshape") or constant(input_at(node, 1)) is not None:
            continue
        entries = _target(node)
        if entries is None:
            continue
        target = add_initializer(
            graph, f"{node.outputs[0].name}/shape", np.array(entries, np.int64)
        )
        node.replace_input_with(1, target)
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        fixed += 1
    if fixed:
        remove_unused(graph)
    return fixed


def _target(node: ir.Node) -> list[int] | None:
    entries = evaluate(input_at(node, 1), 0)
    source = _dims(input_at(node, 0))
    if entries is None or (0 in entries and int_attribute(node, "allowzero", 0)):
        return None
    target = [
        0
        if isinstance(entry, str) and position < len(source) and source[position] == entry
        else entry
        if isinstance(entry, int)
        else -1
        for position, entry in enumerate(entries)
    ]
    if target.count(-1) > 1 or any(entry < -1 for entry in target):
        return None
    return _without_minus_one(target, source)


def _without_minus_one(target: list[int], source: Entries) -> list[int]:
    """The -1 as a number, where the input's other dimensions say what it is."""
    if -1 not in target:
        return target
    kept = {position for position, entry in enumerate(target) if entry == 0}
    rest = [size for position, size in enumerate(source) if position not in kept]
    product = math.prod(entry for entry in target if entry > 0)
    if not rest or not all(isinstance(size, int) and size > 0 for size in rest):
        return target
    missing = math.prod(size for size in rest if isinstance(size, int)) // product
    return [missing if entry == -1 else entry for entry in target]


def _dims(value: ir.Value | None) -> Entries:
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
    entries = _dims(source)
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
