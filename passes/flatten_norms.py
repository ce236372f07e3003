"""Write norms over several axes, of groups and of instances as layer norms of rows.

    LayerNormalization over the axes from a on:  rows [*, n], and back
    GroupNormalization of g groups of [N, C, *]: rows [N, g, n] without scale and bias, back to
        [N, C, *], and each channel's scale and bias; InstanceNormalization has as many groups as
        channels

Integers know norms over the last axis. Left alone: sizes that only a run tells, scales and biases
that are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    Array,
    add_initializer,
    constant,
    dim,
    float_attribute,
    input_at,
    int_attribute,
    is_op,
    new_node,
    rank,
    replace,
)


def flatten_norms(graph: ir.Graph) -> int:
    """Rewrite every such norm of `graph`; returns how many."""
    return sum(REWRITES[node.op_type](graph, node) for node in graph if is_op(node, *REWRITES))


def _over_axes(graph: ir.Graph, norm: ir.Node) -> bool:
    """A layer norm or RMS norm over more than the last axis."""
    x, size = norm.inputs[0], rank(norm.inputs[0])
    if x is None or size is None:
        return False
    axis = int_attribute(norm, "axis", -1) % size
    sizes = _sizes(x, axis)
    rows = [constant(value) for value in norm.inputs[1:] if value is not None]
    unread = all(not value.uses() and not value.is_graph_output() for value in norm.outputs[1:])
    if axis == size - 1 or sizes is None or not unread:
        return False
    if any(row is None or row.shape != tuple(sizes) for row in rows):
        return False
    rows_of_x = _reshape(graph, x, [0] * axis + [-1], [*_leading(x, axis), math.prod(sizes)])
    operands = [
        add_initializer(graph, f"{value.name}/row", row.reshape(-1))
        for value, row in zip(norm.inputs[1:], rows, strict=False)
        if value is not None and row is not None
    ]
    attributes = {"axis": -1, "epsilon": float_attribute(norm, "epsilon", 1e-5)}
    inner = new_node(norm.op_type, [rows_of_x.outputs[0], *operands], attributes, like=x)
    inner.outputs[0].shape = rows_of_x.outputs[0].shape
    back = _reshape(graph, inner.outputs[0], [0] * axis + sizes, [])
    _drop_unread_outputs(norm)
    replace(norm, [rows_of_x, inner, back])
    return True


def _of_groups(graph: ir.Graph, norm: ir.Node) -> bool:
    """Group norm, and instance norm."""
    x, size = norm.inputs[0], rank(norm.inputs[0])
    scale, bias = (constant(input_at(norm, i)) for i in (1, 2))
    if x is None or size is None or scale is None or bias is None or x.dtype is None:
        return False
    sizes = _sizes(x, 1)
    if sizes is None or scale.size != sizes[0] or bias.size != sizes[0]:
        return False
    groups = int_attribute(norm, "num_groups", sizes[0])
    n = math.prod(sizes) // groups
    rows = _reshape(graph, x, [0, groups, -1], [*_leading(x, 1), groups, n])
    ones = add_initializer(graph, f"{norm.outputs[0].name}/ones", np.ones(n, x.dtype.numpy()))
    attributes = {"axis": -1, "epsilon": float_attribute(norm, "epsilon", 1e-5)}
    inner = new_node("LayerNormalization", [rows.outputs[0], ones], attributes, like=x)
    inner.outputs[0].shape = rows.outputs[0].shape
    chain = [rows, inner, _reshape(graph, inner.outputs[0], [0, *sizes], _leading(x, size))]
    for op_type, row, neutral in (("Mul", scale, 1), ("Add", bias, 0)):
        if np.any(row != neutral):
            chain.append(_each_channel(graph, op_type, chain[-1].outputs[0], row, size - 2))
    replace(norm, chain)
    return True


def _each_channel(graph: ir.Graph, op_type: str, x: ir.Value, row: Array, behind: int) -> ir.Node:
    wide = add_initializer(graph, f"{x.name}/{op_type}", row.reshape(-1, *[1] * behind))
    return new_node(op_type, [x, wide], like=x, shape=_leading(x, behind + 2))


def _reshape(
    graph: ir.Graph, x: ir.Value, target: list[int], shape: list[int | ir.SymbolicDim]
) -> ir.Node:
    sizes = add_initializer(graph, f"{x.name}/rows", np.array(target, np.int64))
    return new_node("Reshape", [x, sizes], like=x, shape=shape)


def _leading(x: ir.Value, axis: int) -> list[int | ir.SymbolicDim]:
    return list(x.shape or ())[:axis]


def _sizes(x: ir.Value, axis: int) -> list[int] | None:
    """The sizes from an axis on, if all of them are known."""
    found = [dim(x, a) for a in range(axis, rank(x) or 0)]
    return [size for size in found if size is not None] if None not in found else None


def _drop_unread_outputs(norm: ir.Node) -> None:
    """The mean and the deviation, which nobody reads."""
    norm.resize_outputs(1)


REWRITES: dict[str, Callable[[ir.Graph, ir.Node], bool]] = {
    "LayerNormalization": _over_axes,
    "RMSNormalization": _over_axes,
    "GroupNormalization": _of_groups,
    "InstanceNormalization": _of_groups,
}
