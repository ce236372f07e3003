"""Give Reshape a constant target where its computed target has at most one unknown number.

Exporters write a flatten as Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), [64])). Shape
arithmetic is integer work on the side that no accelerator runs; the target above is [0, 64], where
0 means "as in the input", and the batch stays dynamic.

The target is evaluated symbolically: an entry is a number, the name of a dimension, or None. A
name that the input has at the same place becomes 0; one other unknown entry becomes -1. A constant
target whose -1 can only be the input's dimension at that place gets a 0 there, and keeps its name.
One that starts with the input's own first number gets a 0 there too, so that a batch size which the
model fixes is not in the way of running several samples at a time.
Left alone: two or more unknown entries, a computed 0.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    Array,
    add_initializer,
    constant,
    input_at,
    int_attribute,
    is_op,
    remove_unused,
)
from ptq.passes.shape_values import Entries, dims, evaluate


def fix_reshape(graph: ir.Graph) -> int:
    """Make constant every Reshape target that can be; returns how many."""
    fixed = 0
    for node in graph:
        if not is_op(node, "Reshape"):
            continue
        known = constant(input_at(node, 1))
        entries = _target(node) if known is None else _with_zero(node, known)
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
    source = dims(input_at(node, 0))
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


def _with_zero(node: ir.Node, known: Array) -> list[int] | None:
    """The constant target with 0 for its first number or its -1, where that is the same; or None.

    -1 is, when everything else has one size.
    """
    target, source = [int(entry) for entry in known.reshape(-1)], dims(input_at(node, 0))
    if target and source and isinstance(source[0], int) and 0 < source[0] == target[0]:
        return [0, *target[1:]]
    place = target.index(-1) if -1 in target else len(source)
    if place >= len(source) or not isinstance(source[place], str) or 0 in target:
        return None
    rest = [size for position, size in enumerate(source) if position != place]
    sizes = [size for size in rest if isinstance(size, int) and size > 0]
    if len(sizes) != len(rest) or math.prod(sizes) != -math.prod(target):
        return None
    target[place] = 0
    return target


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
