"""Making tensors of a graph visible, and how much memory that takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UsageError

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Probe = Callable[[ir.Model, Batch, Sequence[str]], list[Array]]

MOVED = "ptq.moved"
"""Metadata of target onnx, JSON: codes that are float64 -> what is added to them."""


def graph_values(model: ir.Model) -> dict[str, ir.Value]:
    """Inputs and node outputs of the main graph, by name."""
    graph = model.graph
    outputs = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*graph.inputs, *outputs) if value.name}


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` (sharing its weights) whose outputs are exactly `names`.

    Codes that the model computes with something added to them are given without it.

    Raises:
        UsageError: a name that is not a value of the main graph.
    """
    copy = model.clone()
    values = graph_values(copy)
    unknown = [name for name in names if name not in values]
    if unknown:
        raise UsageError(
            f"tapped tensors: {', '.join(unknown[:5])} not among the values of the main graph;"
            f" it has {len(values)}, for example {', '.join(list(values)[:3])}"
        )
    moved: dict[str, float] = json.loads(model.metadata_props.get(MOVED, "{}"))
    for name in moved.keys() & set(names):
        values[name] = _less(copy.graph, values[name], moved[name])
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def _less(graph: ir.Graph, value: ir.Value, number: float) -> ir.Value:
    """The value less a number, under its name."""
    name = str(value.name)
    value.name = f"{name}/moved"
    far = ir.Value(name=f"{name}/far", const_value=ir.tensor(np.float64(number)))
    graph.register_initializer(far)
    node = ir.node("Sub", [value, far])
    graph.append(node)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.DOUBLE)
    return node.outputs[0]


def tap_bytes(model: ir.Model, names: Sequence[str], batch: Batch, probe: Probe) -> dict[str, int]:
    """Bytes that each tensor takes on such a batch.

    Shapes come from the graph if they are known once the inputs' symbols are bound to the batch;
    otherwise the model is run once with only the *shapes* of the tensors as outputs.
    """
    values = graph_values(model)
    symbols = _symbols(model, batch)
    sizes = {name: _static_bytes(values[name], symbols) for name in names}
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown:
        shapes = probe(_with_shapes(model, unknown), batch, [f"{n}/ptq_shape" for n in unknown])
        for name, shape in zip(unknown, shapes, strict=True):
            sizes[name] = math.prod(int(dim) for dim in shape) * _item_bytes(values[name])
    return {name: size or 0 for name, size in sizes.items()}


def group(sizes: Mapping[str, int], budget_bytes: int) -> list[list[str]]:
    """Cut the names, in order, into runs that fit the budget; one too large stands alone."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > budget_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def _symbols(model: ir.Model, batch: Batch) -> dict[str, int]:
    """Sizes of the inputs' symbolic dimensions in this batch."""
    symbols: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.name not in batch:
            continue
        for dim, size in zip(value.shape, batch[str(value.name)].shape, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                symbols[dim.value] = size
    return symbols


def _static_bytes(value: ir.Value, symbols: Mapping[str, int]) -> int | None:
    if value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else symbols.get(dim.value or "") for dim in value.shape]
    known = [dim for dim in dims if dim is not None]
    return math.prod(known) * _item_bytes(value) if len(known) == len(dims) else None


def _item_bytes(value: ir.Value) -> int:
    return int(np.ceil(value.dtype.itemsize)) if value.dtype is not None else 4


def _with_shapes(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the shapes of the named values."""
    copy = model.clone()
    values = graph_values(copy)
    nodes = [
        ir.node(
            "Shape",
            inputs=[values[name]],
            outputs=[
                ir.Value(
                    name=f"{name}/ptq_shape",
                    type=ir.TensorType(ir.DataType.INT64),
                )
            ],
        )
        for name in names
    ]
    copy.graph.extend(nodes)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(node.outputs[0] for node in nodes)
    return copy
