"""Steps that print alike in every ONNX target: the boundary, and nodes applied as they are."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ptq.integer.program import Apply, Dequantize, Quantize, Ref
from ptq.targets.build import Builder
from ptq.targets.shapes import infer_types


def quantize(b: Builder, step: Quantize) -> None:
    """QuantizeLinear, unless the input already is codes."""
    if b.has(Ref(step.value, True)):
        return
    b.bind_codes(step.value, b.quantize(step.value, b.value(Ref(step.value, False))))


def dequantize(b: Builder, step: Dequantize) -> None:
    """DequantizeLinear, unless the output is to be codes and nothing inside reads the values."""
    if step.value not in b.exposed:
        b.bind(Ref(step.value, False), b.dequantize(step.value))


def apply(b: Builder, step: Apply) -> None:
    """The node itself, on codes or on raw values."""
    operands = [None if ref is None else b.value(ref) for ref in step.inputs]
    for ref, output in zip(step.outputs, append_copy(b, step, operands), strict=True):
        b.bind(ref, output)


def append_copy(b: Builder, step: Apply, operands: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
    """Append the step's node with these operands; returns its outputs."""
    node = ir.Node(
        "" if step.domain == "ai.onnx" else step.domain,
        step.op_type,
        operands,
        [_own(b, attr) for attr in step.attributes],
        num_outputs=len(step.outputs),
    )
    outputs = b.append(node)
    infer_types(node, outputs, b.opset)
    return outputs


def _own(b: Builder, attr: ir.Attr) -> ir.Attr:
    """The attribute, its bodies copied and reading the emitted graph's values."""
    if attr.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attr.name, _own_graph(b, attr.as_graph()))
    if attr.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(attr.name, [_own_graph(b, graph) for graph in attr.as_graphs()])
    return attr


def _own_graph(b: Builder, body: ir.Graph) -> ir.Graph:
    graph = body.clone(allow_outer_scope_values=True)
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    inside = {id(v) for node in nodes for v in node.outputs}
    for scope in (graph, *graph.subgraphs()):
        inside |= {id(v) for v in (*scope.inputs, *scope.initializers.values())}
    for node in nodes:
        for i, value in enumerate(node.inputs):
            if value is not None and id(value) not in inside:
                node.replace_input_with(i, b.value(Ref(str(value.name), False)))
    for i, value in enumerate(graph.outputs):
        if id(value) not in inside:
            graph.outputs[i] = b.value(Ref(str(value.name), False))
    return graph
