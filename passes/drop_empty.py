"""Leave out of a Concat what has no elements: padding that came out as nothing, say.

What makes such an operand is computed in no elements either, and goes when nobody reads it.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.rewriting import dim, int_attribute, is_op, remove_unused


def drop_empty(graph: ir.Graph) -> int:
    """Drop every operand that is known to be empty; returns how many went."""
    dropped = sum(_drop(node) for node in graph if is_op(node, "Concat"))
    if dropped:
        remove_unused(graph)
    return dropped


def _drop(concat: ir.Node) -> int:
    axis = int_attribute(concat, "axis", 0)
    kept = [x for x in concat.inputs if x is None or dim(x, axis) != 0]
    dropped = len(concat.inputs) - len(kept)
    if not kept or not dropped:
        return 0
    for index, value in enumerate(kept):
        concat.replace_input_with(index, value)
    concat.resize_inputs(len(kept))
    return dropped
