"""Fold rows that are always the same into the tables of embeddings they are added to.

    x + Gather(W, Expand(i, shape))  ->  x + W[i]           where the sum has the shape of x
    Gather(T, ids) + row             ->  Gather(T + row, ids)

Exported encoders add the embedding of a sentence type that is always the first one. Left alone: a
table that something else reads, too, and rows of embeddings that are broadcast by the sum.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    Array,
    add_initializer,
    bypass,
    constant,
    input_at,
    int_attribute,
    is_op,
    remove_unused,
    sole_producer,
)

MATRIX = 2


def fold_embeddings(graph: ir.Graph) -> int:
    """Fold every such row of `graph`; returns how often."""
    additions = [node for node in graph if is_op(node, "Add")]
    folded = sum(_to_a_row(graph, node, i) for node in additions for i in (0, 1))
    folded += sum(any(_into_the_table(graph, node, i) for i in (0, 1)) for node in additions)
    if folded:
        remove_unused(graph)
    return folded


def _to_a_row(graph: ir.Graph, addition: ir.Node, index: int) -> bool:
    """Make a constant of operand `index` if all its rows are the same."""
    x, y = addition.inputs[1 - index], addition.inputs[index]
    row = None if y is None else _constant_row(y)
    if x is None or y is None or row is None or not _same_shape(x, addition.outputs[0]):
        return False
    addition.replace_input_with(index, add_initializer(graph, f"{y.name}/row", row))
    return True


def _into_the_table(graph: ir.Graph, addition: ir.Node, index: int) -> bool:
    """Add operand `index`, a constant row, to the table that the other one's rows are from."""
    x, row = addition.inputs[1 - index], constant(addition.inputs[index])
    gather = sole_producer(x)
    table = None if gather is None else _table(gather)
    if x is None or row is None or gather is None or table is None:
        return False
    source = gather.inputs[0]
    if row.shape not in ((), table.shape[-1:]) or source is None or len(source.uses()) != 1:
        return False
    gather.replace_input_with(0, add_initializer(graph, str(source.name), table + row))
    return bypass(addition, x)


def _constant_row(value: ir.Value) -> Array | None:
    """The row [n] that the value has everywhere: Gather(W, Expand(i, shape))."""
    gather = value.producer()
    table = None if gather is None else _table(gather)
    if gather is None or table is None:
        return None
    ids = input_at(gather, 1)
    expand = None if ids is None else ids.producer()
    if expand is None or not is_op(expand, "Expand"):
        return None
    number = constant(expand.inputs[0])
    if number is None or number.size != 1 or not -len(table) <= number.item() < len(table):
        return None
    return np.asarray(table[number.item()])


def _table(gather: ir.Node) -> Array | None:
    """The constant matrix whose rows a Gather reads."""
    if not is_op(gather, "Gather") or int_attribute(gather, "axis", 0) not in (0, -MATRIX):
        return None
    table = constant(gather.inputs[0])
    return table if table is not None and table.ndim == MATRIX else None


def _same_shape(x: ir.Value, y: ir.Value) -> bool:
    """True if both have the same numbers and the same names of sizes, all of them known."""
    if x.shape is None or y.shape is None:
        return False
    sizes = [[d if isinstance(d, int) else d.value for d in v.shape or ()] for v in (x, y)]
    return sizes[0] == sizes[1] and None not in sizes[0]
