"""Write every attention mask as Where(keep, scores, lowest), with a boolean `keep`.

    scores + Where(keep, 0, -C)          scores + (1 - Cast(mask)) * -C        (mask: 0 or 1)
    scores + Cast(hidden) * -C           scores + a constant of 0 and -C
    scores + (bias + any of these)       scores + Where(keep, bias, -C)
    Where(hidden, -C, scores)            and any of these reshaped, expanded or added up

with C at least 10^4, infinite too: exp(-C) is zero in float32 beside any score that counts. The
boolean form has no float tensor for integer targets to carry. Also:

    Where(IsNaN(softmax), 0, softmax)  =  softmax      (the scores are finite now)
    Equal(Trilu(Expand(1.0)), 0)       =  Not(Trilu(Expand(True)))

Rows that are masked altogether mean nothing, and do not keep their values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    bypass,
    constant,
    is_op,
    new_node,
    rank,
    remove_unused,
    replace,
)

MASKED = -1e4
LOWEST = np.finfo(np.float32).min
MOVES = ("Unsqueeze", "Squeeze", "Expand", "Reshape", "Transpose", "Slice", "Identity", "Cast")
BOOL = ir.TensorType(ir.DataType.BOOL)


def write_mask_as_where(graph: ir.Graph) -> int:
    """Rewrite every mask of `graph`; returns how many places changed."""
    changed = sum(_RULES[node.op_type](graph, node) for node in list(graph) if is_op(node, *_RULES))
    if changed:
        remove_unused(graph)
    return changed


def _softmax(graph: ir.Graph, node: ir.Node) -> bool:
    """The mask in front of a softmax."""
    source = node.inputs[0]
    made = None if source is None else source.producer()
    if source is None or made is None or len(source.uses()) != 1 or source.is_graph_output():
        return False
    if is_op(made, "Add"):
        for scores, mask in _both_ways(made):
            if scores is None or rank(scores) != rank(source):
                continue
            keep = _Keep(graph, made).of(mask)
            if keep is not None:
                replace(made, [new_node("Where", [keep, scores, _lowest(graph)])])
                return True
            if _behind_bias(graph, made, scores, mask):
                return True
    return is_op(made, "Where") and _where(graph, made)


def _behind_bias(graph: ir.Graph, made: ir.Node, scores: ir.Value, biased: ir.Value | None) -> bool:
    """scores + (bias + mask) and scores + Where(keep, bias, -C), as of T5's relative positions."""
    bias, keep = _parted(_Keep(graph, made), None if biased is None else biased.producer())
    if bias is None or keep is None:
        return False
    total = new_node("Add", [scores, bias], like=scores, shape=list(scores.shape or ()))
    replace(made, [total, new_node("Where", [keep, total.outputs[0], _lowest(graph)])])
    return True


def _parted(keeps: _Keep, inner: ir.Node | None) -> tuple[ir.Value | None, ir.Value | None]:
    """What is added where nothing is masked, and the boolean of where that is."""
    if is_op(inner, "Add") and inner is not None:
        for bias, mask in _both_ways(inner):
            keep = None if constant(mask) is not None else keeps.of(mask)
            if keep is not None:
                return bias, keep
    if is_op(inner, "Where") and inner is not None:
        condition, first, second = inner.inputs
        if _is_masked(second) and not _is_masked(first):
            return first, condition
        if _is_masked(first) and not _is_masked(second) and condition is not None:
            return second, keeps.insert("Not", [condition], condition)
    return None, None


def _both_ways(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    first, second = node.inputs
    return (first, second), (second, first)


def _where(graph: ir.Graph, made: ir.Node) -> bool:
    """Where(hidden, -C, scores), or an infinite C."""
    condition, first, second = made.inputs
    if _is_masked(first) and not _is_masked(second):
        hidden = new_node("Not", [condition], like=condition)
        if condition is not None:
            hidden.outputs[0].shape = condition.shape
        replace(made, [hidden, new_node("Where", [hidden.outputs[0], second, _lowest(graph)])])
        return True
    array = constant(second)
    if _is_masked(second) and array is not None and not np.isfinite(array).all():
        replace(made, [new_node("Where", [condition, first, _lowest(graph)])])
        return True
    return False


def _guard(graph: ir.Graph, node: ir.Node) -> bool:
    """Where(IsNaN(y), 0, y) of a softmax y whose scores are finite."""
    condition, zero, value = node.inputs
    test = None if condition is None else condition.producer()
    softmax = None if value is None else value.producer()
    array = constant(zero)
    if value is None or not is_op(test, "IsNaN") or not is_op(softmax, "Softmax"):
        return False
    if test is None or test.inputs[0] is not value or array is None or np.any(array):
        return False
    return bypass(node, value)


def _causal(graph: ir.Graph, node: ir.Node) -> bool:
    """Equal(Trilu(Expand(1.0, shape)), 0): float ones only to make a triangle."""
    zero = constant(node.inputs[1])
    triangle = None if node.inputs[0] is None else node.inputs[0].producer()
    ones = None if not is_op(triangle, "Trilu") or triangle is None else triangle.inputs[0]
    expand = None if ones is None else ones.producer()
    if expand is None or triangle is None or not is_op(expand, "Expand"):
        return False
    one = constant(expand.inputs[0])
    if one is None or zero is None or one.dtype == np.bool_ or np.any(one != 1) or np.any(zero):
        return False
    true = add_initializer(graph, f"{node.outputs[0].name}/true", np.ones(one.shape, bool))
    wide = new_node("Expand", [true, expand.inputs[1]])
    half = ir.node("Trilu", [wide.outputs[0], *triangle.inputs[1:]], dict(triangle.attributes))
    for made, shape in ((wide, expand.outputs[0].shape), (half, triangle.outputs[0].shape)):
        made.outputs[0].type, made.outputs[0].shape = BOOL, shape
    replace(node, [wide, half, new_node("Not", [half.outputs[0]])])
    return True


class _Keep:
    """Builds the boolean of a float mask in front of `anchor`."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node) -> None:
        self.graph = graph
        self.anchor = anchor

    def of(self, value: ir.Value | None) -> ir.Value | None:
        """The boolean that is true where the mask is 0, or None if it is no mask."""
        if value is None:
            return None
        array = constant(value)
        if array is not None:
            return self._constant(array)
        node = value.producer()
        if node is None:
            return None
        if is_op(node, *MOVES):
            return self._moved(node)
        rule = {"Where": self._where, "Mul": self._mul, "Add": self._add}.get(node.op_type)
        return None if rule is None else rule(node)

    def _constant(self, array: np.ndarray) -> ir.Value | None:
        hidden = array <= MASKED
        if array.ndim == 0 or not hidden.any() or np.any(array[~hidden] != 0):
            return None
        return add_initializer(self.graph, f"{self.anchor.outputs[0].name}/keep", ~hidden)

    def _where(self, node: ir.Node) -> ir.Value | None:
        condition, first, second = node.inputs
        if _is_zero(first) and _is_masked(second):
            return condition
        if _is_masked(first) and _is_zero(second) and condition is not None:
            return self.insert("Not", [condition], condition)
        return None

    def _mul(self, node: ir.Node) -> ir.Value | None:
        """(1 - m) * -C keeps where m, m * -C hides where m; m is 0 or 1, from bool or integer."""
        for value, other in (node.inputs, tuple(reversed(node.inputs))):
            if not _is_masked(other) or value is None:
                continue
            inverse = value.producer()
            if is_op(inverse, "Sub") and inverse is not None and _is_one(inverse.inputs[0]):
                return self._bool(inverse.inputs[1])
            hidden = self._bool(value)
            return None if hidden is None else self.insert("Not", [hidden], hidden)
        return None

    def _add(self, node: ir.Node) -> ir.Value | None:
        parts = [self.of(value) for value in node.inputs]
        if parts[0] is None or parts[1] is None:
            return None
        return self.insert("And", parts, node.outputs[0])

    def _moved(self, node: ir.Node) -> ir.Value | None:
        inner = self.of(node.inputs[0])
        if inner is None or is_op(node, "Cast"):
            return inner
        moved = ir.node(node.op_type, [inner, *node.inputs[1:]], dict(node.attributes))
        return self._place(moved, node.outputs[0])

    def _bool(self, value: ir.Value | None) -> ir.Value | None:
        """The bool behind a float of zeros and ones, or an integer's cast to bool."""
        node = None if value is None else value.producer()
        source = None if node is None else node.inputs[0]
        if node is None or source is None or value is None:
            return None
        if is_op(node, "Cast") and source.dtype == ir.DataType.BOOL:
            return source
        if is_op(node, "Cast") and source.dtype is not None and source.dtype.is_integer():
            cast = ir.node("Cast", [source], {"to": int(ir.DataType.BOOL)})
            return self._place(cast, source)
        if not is_op(node, *MOVES):
            return None
        inner = self._bool(source)
        if inner is None:
            return None
        moved = ir.node(node.op_type, [inner, *node.inputs[1:]], dict(node.attributes))
        return self._place(moved, value)

    def insert(self, op_type: str, inputs: list[ir.Value | None], like: ir.Value) -> ir.Value:
        """A boolean in front of the anchor, shaped like another value."""
        return self._place(ir.node(op_type, inputs), like)

    def _place(self, node: ir.Node, like: ir.Value) -> ir.Value:
        output = node.outputs[0]
        output.type, output.shape = BOOL, like.shape
        self.graph.insert_before(self.anchor, [node])
        self.graph.sort()
        return output


def _lowest(graph: ir.Graph) -> ir.Value:
    return add_initializer(graph, "lowest", np.asarray(LOWEST, np.float32))


def _is_masked(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is None or array.dtype.kind != "f" or array.size != 1:
        return False
    return bool((array <= MASKED).all())


def _is_zero(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and not np.any(array)


def _is_one(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(np.all(array == 1))


_RULES: dict[str, Callable[[ir.Graph, ir.Node], bool]] = {
    "Softmax": _softmax,
    "Where": _guard,
    "Equal": _causal,
}
