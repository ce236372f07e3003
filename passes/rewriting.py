"""The few graph operations that every rewrite in this folder is written with.

A rewrite edits one `onnx_ir.Graph` in place and returns how many places it changed; 0 means that
nothing matched. What a rewrite declines it leaves exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Attributes = Mapping[str, int | float | str | Sequence[int]]
Rewrite = Callable[[ir.Graph], int]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """True when `node` is one of the standard-domain operators `op_types`."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer that no caller can override, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a known number, or None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(int(d) for d in dims if isinstance(d, int)) if value.shape.is_static() else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, or None when it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dim(value: ir.Value, axis: int) -> int | None:
    """The size of one dimension, or None when it is unknown or symbolic."""
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """A string attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list-of-integers attribute, or None when it is absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`, or None when it is absent or left empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def sole_producer(value: ir.Value | None) -> ir.Node | None:
    """The node that makes `value`, when exactly one use reads it and it is no graph output."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return value.producer()


def unique_name(graph: ir.Graph, base: str) -> str:
    """`base`, or `base_1`, `base_2`, ... when a value of the graph has that name."""
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {output.name for node in graph for output in node.outputs}
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def add_initializer(graph: ir.Graph, base_name: str, array: Array) -> ir.Value:
    """Register `array` as a new constant of the graph and return its value."""
    name = unique_name(graph, base_name)
    array = np.asarray(array, order="C")  # ascontiguousarray would make a scalar a vector
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes | None = None,
    *,
    like: ir.Value | None = None,
    shape: Sequence[int | ir.SymbolicDim] | None = None,
) -> ir.Node:
    """A standard-domain node with one output, typed as `like` and shaped as `shape`."""
    node = ir.node(op_type, inputs=inputs, attributes=attributes or {})
    if like is not None:
        node.outputs[0].type = like.type
    if shape is not None:
        node.outputs[0].shape = ir.Shape(shape)
    return node


def replace(node: ir.Node, chain: Sequence[ir.Node]) -> None:
    """Put `chain` in the place of the one-output `node`; its last output takes the old name.

    Inner values and nodes are named after the node they came from.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.name}: expected a node inside a graph")
    old, new = node.outputs[0], chain[-1].outputs[0]
    stem, output_name = node.name or old.name or node.op_type, old.name
    new.type, new.shape = old.type, old.shape
    graph.insert_before(node, chain)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for step in chain[:-1]:
        step.outputs[0].name = unique_name(graph, f"{output_name}/{step.op_type}")
        step.name = step.outputs[0].name
    chain[-1].name = stem
    new.name = output_name


def bypass(node: ir.Node, source: ir.Value) -> bool:
    """Let the readers of `node`'s only output read `source`; False when names forbid it.

    A graph output must keep its name, so it moves to `source` only when `source` is free to be
    renamed: made by a node, and not itself an output.
    """
    graph, output = node.graph, node.outputs[0]
    if not isinstance(graph, ir.Graph):
        return False
    if output.is_graph_output():
        if source.producer() is None or source.is_graph_output() or source.graph is not graph:
            return False
        name = output.name
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        source.name = name
        return True
    output.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def remove_unused(graph: ir.Graph) -> int:
    """Drop nodes whose outputs nobody reads, then initializers that nobody reads."""
    removed = 0
    for node in reversed(graph):
        if all(not out.uses() and not out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
            removed += 1
    return removed
