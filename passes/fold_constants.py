"""Compute nodes whose inputs are all constant, and shapes that are known.

onnx-simplifier has folded what is small; this fold does the large weights, which never go to the
child process (see simplify.py), and everything when the simplifier was left out.

1. a node with constant inputs becomes a constant: in numpy, or in onnxruntime where the operator is
   not listed here and the result's shape is known beforehand;
2. Shape and Size of a value with static dims become constants.

Left alone: random operators, subgraphs, other domains, and results above the size limit, which is
what a ConstantOfShape of 2**34 elements meets.
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
    int_attribute,
    ints_attribute,
    is_op,
    static_shape,
)
from ptq.single_node import run_node

_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_RANDOM = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli", "Dropout"),
)
MAX_ELEMENTS = 1 << 26
"""The largest result: 256 MiB of float32. Weights are folded up to their own size."""

Inputs = list[Array | None]
Rule = Callable[[ir.Node, Inputs], Array | None]


def fold_constants(graph: ir.Graph) -> int:
    """Fold every foldable node of `graph`; returns how many."""
    folded = 0
    for node in graph:
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        result = _evaluate(node)
        if result is None or not _fits(result, node):
            continue
        output = node.outputs[0]
        name = output.name or node.op_type
        output.name = None
        output.replace_all_uses_with(add_initializer(graph, name, result))
        graph.remove(node, safe=True)
        folded += 1
    return folded


def _evaluate(node: ir.Node) -> Array | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if is_op(node, "Shape", "Size"):
        return _shape_of(node)
    rule = _RULES.get(node.op_type, _by_onnxruntime)
    if not node.inputs:
        return None
    arrays = [constant(value) for value in node.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
        return None
    try:
        with np.errstate(all="ignore"):
            return rule(node, arrays)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None  # numpy refuses it: onnxruntime will say why


def _by_onnxruntime(node: ir.Node, inputs: Inputs) -> Array | None:
    """Any other operator, where it is known how much it makes."""
    shape = static_shape(node.outputs[0])
    has_body = any(attr.type in _BODIES for attr in node.attributes.values())
    if shape is None or math.prod(shape) > MAX_ELEMENTS or has_body or is_op(node, *_RANDOM):
        return None
    feeds = {
        str(value.name): array
        for value, array in zip(node.inputs, inputs, strict=True)
        if value is not None and array is not None
    }
    opset = None if node.graph is None else node.graph.opset_imports.get("")
    if opset is None:
        return None
    try:
        return run_node(ir.to_proto(node), feeds, opset)[0]
    except Exception:  # onnxruntime's errors have no common class; the node stays, and it says why
        return None


def _fits(result: Array, node: ir.Node) -> bool:
    largest = max((v.const_value.size for v in node.inputs if v and v.const_value), default=0)
    return result.size <= max(MAX_ELEMENTS, largest) and result.dtype.kind in "biufV"


def _shape_of(node: ir.Node) -> Array | None:
    shape = static_shape(node.inputs[0])
    if shape is None:
        return None
    if is_op(node, "Size"):
        return np.array(math.prod(shape), np.int64)
    end = node.attributes.get("end")
    picked = shape[int_attribute(node, "start", 0) : end.as_int() if end else None]
    return np.array(picked, np.int64)


def _ints(array: Array | None) -> list[int]:
    return [] if array is None else [int(i) for i in array.reshape(-1)]


def _first(inputs: Inputs) -> Array:
    array = inputs[0]
    if array is None:
        raise ValueError("the first input is missing")
    return array


def _given(inputs: Inputs) -> list[Array]:
    return [array for array in inputs if array is not None]


def _binary(ufunc: np.ufunc) -> Rule:
    def rule(node: ir.Node, inputs: Inputs) -> Array | None:
        a, b = _given(inputs)
        if math.prod(np.broadcast_shapes(a.shape, b.shape)) > max(MAX_ELEMENTS, a.size, b.size):
            return None
        return np.asarray(ufunc(a, b), a.dtype)

    return rule


def _compare(ufunc: np.ufunc) -> Rule:
    return lambda node, inputs: np.asarray(ufunc(*_given(inputs)))


def _unary(ufunc: np.ufunc) -> Rule:
    return lambda node, inputs: np.asarray(ufunc(_first(inputs)), _first(inputs).dtype)


def _div(node: ir.Node, inputs: Inputs) -> Array | None:
    a, b = _given(inputs)
    if a.dtype.kind == "f":
        return np.asarray(a / b, a.dtype)
    if not np.all(b):
        return None
    quotient = np.abs(a) // np.abs(b)  # ONNX divides integers towards zero
    return np.asarray(quotient * np.sign(a) * np.sign(b), a.dtype)


def _reshape(node: ir.Node, inputs: Inputs) -> Array | None:
    source, target = _first(inputs), _ints(inputs[1])
    if not int_attribute(node, "allowzero", 0):
        target = [source.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return source.reshape(target)


def _squeeze(node: ir.Node, inputs: Inputs) -> Array | None:
    axes = _ints(inputs[1]) if len(inputs) > 1 else []
    return np.squeeze(_first(inputs), tuple(axes) if axes else None)


def _expand(node: ir.Node, inputs: Inputs) -> Array | None:
    source = _first(inputs)
    shape = np.broadcast_shapes(source.shape, tuple(_ints(inputs[1])))
    return np.broadcast_to(source, shape) if math.prod(shape) <= MAX_ELEMENTS else None


def _tile(node: ir.Node, inputs: Inputs) -> Array | None:
    source, times = _first(inputs), _ints(inputs[1])
    return np.tile(source, times) if source.size * math.prod(times) <= MAX_ELEMENTS else None


def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Array | None:
    shape = _ints(inputs[0])
    if math.prod(shape) > MAX_ELEMENTS:
        return None
    value = node.attributes.get("value")
    fill = value.as_tensor().numpy().reshape(-1) if value else np.zeros(1, np.float32)
    return np.full(shape, fill[0], fill.dtype)


def _range(node: ir.Node, inputs: Inputs) -> Array | None:
    start, limit, delta = (array.reshape(-1)[0] for array in _given(inputs))
    if not delta or (limit - start) / delta > MAX_ELEMENTS:
        return None
    return np.arange(start, limit, delta, dtype=start.dtype)


def _slice(node: ir.Node, inputs: Inputs) -> Array | None:
    source, starts, ends = _first(inputs), _ints(inputs[1]), _ints(inputs[2])
    axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = _ints(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    picks = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -source.shape[axis] else end
        picks[axis] = slice(start, stop, step)
    return source[tuple(picks)]


def _gather(node: ir.Node, inputs: Inputs) -> Array | None:
    source, index = _given(inputs)
    axis = int_attribute(node, "axis", 0)
    if source.size // max(source.shape[axis], 1) * index.size > MAX_ELEMENTS:
        return None
    return np.asarray(np.take(source, index, axis))


def _transpose(node: ir.Node, inputs: Inputs) -> Array | None:
    return np.transpose(_first(inputs), ints_attribute(node, "perm"))


def _concat(node: ir.Node, inputs: Inputs) -> Array | None:
    return np.concatenate(_given(inputs), int_attribute(node, "axis", 0))


def _cast(node: ir.Node, inputs: Inputs) -> Array | None:
    target = ir.DataType(int_attribute(node, "to", 0))
    plain = target.bitwidth >= 8 and target.is_floating_point() <= (target.bitwidth >= 16)
    return _first(inputs).astype(target.numpy()) if plain else None


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Array | None:
    return np.expand_dims(_first(inputs), tuple(_ints(inputs[1])))


def _flatten(node: ir.Node, inputs: Inputs) -> Array | None:
    source, axis = _first(inputs), int_attribute(node, "axis", 1)
    rows = math.prod(source.shape[:axis])
    return source.reshape(rows, -1) if rows else None


def _where(node: ir.Node, inputs: Inputs) -> Array | None:
    return np.where(*_given(inputs))


_RULES: dict[str, Rule] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _div,
    "Neg": _unary(np.negative),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Reciprocal": _unary(np.reciprocal),
    "Equal": _compare(np.equal),
    "Identity": lambda node, inputs: _first(inputs),
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Where": _where,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
"""One small numpy function an operator: what a file may ask much memory for, and what is common."""
