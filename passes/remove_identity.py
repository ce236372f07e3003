"""Remove what computes nothing at inference: Identity, Dropout, a Concat of one operand, and nodes
that nobody reads.

Left alone: an Identity between a graph input and a graph output (both names must stay), Dropout in
training mode or with its mask in use.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.rewriting import bypass, constant, input_at, is_op, remove_unused


def remove_identity(graph: ir.Graph) -> int:
    """Remove every removable node; returns how many nodes and constants went."""
    removed = 0
    for node in graph:
        source = input_at(node, 0)
        if source is not None and _computes_nothing(node):
            removed += bypass(node, source)
    return removed + remove_unused(graph)


def _computes_nothing(node: ir.Node) -> bool:
    if is_op(node, "Identity") or (is_op(node, "Concat") and len(node.inputs) == 1):
        return True
    if not is_op(node, "Dropout"):
        return False
    training = input_at(node, 2)
    flag = constant(training)
    off = training is None or (flag is not None and not bool(flag.item()))
    return off and not any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
