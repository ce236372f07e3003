"""Write a division by something computed as a product with its reciprocal.

    Div(a, b) = Mul(a, Reciprocal(b)),   Div(1, b) = Reciprocal(b)

Integer targets have a product, and any function of one tensor as a table; they have no quotient of
two tensors. Left alone: a constant divisor, integer tensors (their division truncates).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import constant, is_op, new_node, replace


def divide_by_multiplying(graph: ir.Graph) -> int:
    """Rewrite every division by a computed float tensor; returns how many."""
    changed = 0
    for node in graph:
        divisor = node.inputs[1] if is_op(node, "Div") else None
        if divisor is None or constant(divisor) is not None:
            continue
        if divisor.dtype is None or not divisor.dtype.is_floating_point():
            continue
        inverse = new_node("Reciprocal", [divisor], like=divisor)
        inverse.outputs[0].shape = divisor.shape
        dividend = constant(node.inputs[0])
        if dividend is not None and dividend.ndim == 0 and np.all(dividend == 1):
            replace(node, [inverse])
        else:
            replace(node, [inverse, new_node("Mul", [node.inputs[0], inverse.outputs[0]])])
        changed += 1
    return changed
