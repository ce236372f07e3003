"""Let a positive number that an operand of a MatMul is multiplied with multiply the product.

    (a * c) @ b  =  (a @ b) * c          (the 1 / sqrt(d) of attention; `a` moved about or not)

There it becomes a part of the product's requantisation; in front it would be a step of its own.
Left alone: operands that something else reads too, factors that are negative or vary.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import add_initializer, constant, is_op, new_node, sole_producer

MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity", "Slice")


def sink_scalars(graph: ir.Graph) -> int:
    """Sink every factor that can; returns how many."""
    return sum(
        _sink(graph, node, index)
        for node in list(graph)
        if is_op(node, "MatMul")
        for index in (0, 1)
    )


def _sink(graph: ir.Graph, product: ir.Node, index: int) -> bool:
    node = sole_producer(product.inputs[index])
    while is_op(node, *MOVES):
        node = sole_producer(node.inputs[0]) if node is not None else None
    if node is None or not is_op(node, "Mul", "Div"):
        return False
    factor = factor_of(node)
    if factor is None:
        return False
    source = node.inputs[factor[1]]
    if source is None:
        return False
    node.outputs[0].replace_all_uses_with(source)
    graph.remove(node, safe=True)
    _multiply(graph, product, factor[0])
    return True


def _multiply(graph: ir.Graph, product: ir.Node, factor: float) -> None:
    """Multiply the product, or a factor that it has already, and keep its name for the result."""
    output = product.outputs[0]
    users = list(output.uses())
    after = users[0].node if len(users) == 1 and not output.is_graph_output() else None
    known = factor_of(after) if is_op(after, "Mul") and after is not None else None
    if known is not None and after is not None:
        total = add_initializer(
            graph, f"{output.name}/factor", np.asarray(factor * known[0], np.float32)
        )
        after.replace_input_with(1 - known[1], total)
        return
    name = str(output.name)
    scaled = new_node(
        "Mul", [output, add_initializer(graph, f"{name}/factor", np.asarray(factor, np.float32))]
    )
    result = scaled.outputs[0]
    result.type, result.shape = output.type, output.shape
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    scaled.replace_input_with(0, output)
    output.name, result.name, scaled.name = f"{name}/product", name, f"{product.name}/factor"
    graph.insert_after(product, scaled)


def factor_of(node: ir.Node) -> tuple[float, int] | None:
    """The positive number that a Mul or Div multiplies with, and which input is multiplied."""
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        array = constant(node.inputs[1 - index])
        if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind != "f":
            continue
        number = float(array.reshape(()))
        if np.isfinite(number) and number > 0:
            return (number if node.op_type == "Mul" else 1 / number), index
    return None
