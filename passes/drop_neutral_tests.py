"""Leave out of And and Or the constants that decide nothing: And with True, Or with False.

    And(x, c) = Expand(x, the shape of c)

Attention written for every kind of mask combines the padding's with one that hides nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import add_initializer, constant, is_op, new_node, replace

NEUTRAL = {"And": True, "Or": False}


def drop_neutral_tests(graph: ir.Graph) -> int:
    """Rewrite every such node; returns how many."""
    return sum(_drop(graph, node) for node in graph if is_op(node, *NEUTRAL))


def _drop(graph: ir.Graph, node: ir.Node) -> bool:
    for x, other in (node.inputs, reversed(node.inputs)):
        array = constant(other)
        if x is None or array is None or constant(x) is not None or x.shape is None:
            continue
        if np.all(array == NEUTRAL[node.op_type]):
            shape = add_initializer(
                graph, f"{node.outputs[0].name}/shape", np.array(array.shape, np.int64)
            )
            replace(node, [new_node("Expand", [x, shape], like=x)])
            return True
    return False
