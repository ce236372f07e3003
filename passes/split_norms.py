"""Give the additions that read a norm's output a norm of their own.

    y = Norm(x), y @ W, y + z    =    y @ W, y' + z with y' = Norm(x)

A shortcut wants many bits of what a product wants in eight, and the copy for products may have its
channels rescaled. Runtimes find what the two have in common and compute it once.
Left alone: norms that only additions read, or none.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.rewriting import is_op, unique_name

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def split_norms(graph: ir.Graph) -> int:
    """Split every such norm of `graph`; returns how many."""
    return sum(_split(graph, node) for node in list(graph) if is_op(node, *NORMS))


def _split(graph: ir.Graph, norm: ir.Node) -> bool:
    output = norm.outputs[0]
    uses = list(output.uses())
    additions = [use for use in uses if is_op(use.node, "Add")]
    if not additions or len(additions) == len(uses):
        return False
    copy = ir.node(norm.op_type, norm.inputs, dict(norm.attributes))
    result = copy.outputs[0]
    result.type, result.shape = output.type, output.shape
    result.name = unique_name(graph, f"{output.name}/shortcut")
    copy.name = f"{norm.name}/shortcut"
    graph.insert_after(norm, copy)
    for use in additions:
        use.node.replace_input_with(use.idx, result)
    return True
