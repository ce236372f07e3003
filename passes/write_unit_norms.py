"""Write a division by the Euclidean norm of the same rows as an RMS norm, which integers know.

    x / max(|x|, e)   =   x * Reciprocal(Sqrt(ReduceMean(x^2) + e^2 / n)) * n^-1/2

for rows of n along one axis: what `torch.nn.functional.normalize`, cosine attention and embeddings
end in, as ReduceL2 or by its parts, clipped, with e added, or bare; and LpNormalization with p = 2.
With a small e the two differ only where |x| is about e, and rows of zeros stay zeros.

Left alone: norms over several axes, sizes that only a run tells, e above LARGEST_EPSILON.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    constant,
    dim,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    new_node,
    rank,
    replace,
)

LARGEST_EPSILON = 1e-5
SMALLEST_MEAN = 1e-30
"""Of squares: its root has a reciprocal in float32, by which a row of zeros stays one."""


def write_unit_norms(graph: ir.Graph) -> int:
    """Rewrite every such division of `graph`; returns how many."""
    return sum(_rewrite(graph, node) for node in graph if is_op(node, "Div", "LpNormalization"))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    x = node.inputs[0]
    found = _operator(node) if is_op(node, "LpNormalization") else _division(node)
    size = rank(x)
    if x is None or x.dtype is None or x.shape is None or found is None or size is None:
        return False
    axis, epsilon = found[0] % size, found[1]
    n = dim(x, axis)
    if n is None or n < 2 or epsilon > LARGEST_EPSILON:
        return False
    replace(node, _as_rms_norm(graph, x, axis, n, max(epsilon * epsilon / n, SMALLEST_MEAN)))
    return True


def _operator(node: ir.Node) -> tuple[int, float] | None:
    """Axis and epsilon, if the operator is the Euclidean one."""
    return (int_attribute(node, "axis", -1), 0.0) if int_attribute(node, "p", 2) == 2 else None


def _division(node: ir.Node) -> tuple[int, float] | None:
    """Axis and epsilon, if the divisor is the norm of the dividend."""
    x, divisor = node.inputs
    expand = _made_by(divisor, "Expand")
    if expand is not None:
        divisor = expand.inputs[0]
    epsilon = 0.0
    bounded = _made_by(divisor, "Clip", "Max", "Add")
    if bounded is not None:
        bound = _bound(bounded)
        if bound is None:
            return None
        divisor, epsilon = bound
    axes = _norm_of(divisor, x)
    return (axes[0], epsilon) if axes is not None and len(axes) == 1 else None


def _bound(node: ir.Node) -> tuple[ir.Value | None, float] | None:
    """What is clipped from below or added to, and the number."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:  # from above, too
        return None
    for value, other in (node.inputs[:2], reversed(node.inputs[:2])):
        number = constant(other)
        if number is not None and number.size == 1 and number >= 0:
            return value, float(number.reshape(()))
    return None


def _norm_of(value: ir.Value | None, x: ir.Value | None) -> tuple[int, ...] | None:
    """The axes, if the value is the norm of x with these axes kept."""
    norm = _made_by(value, "ReduceL2")
    if norm is not None:
        return _kept_axes(norm) if norm.inputs[0] is x else None
    root = _made_by(value, "Sqrt")
    total = _made_by(None if root is None else root.inputs[0], "ReduceSumSquare", "ReduceSum")
    if total is None:
        return None
    base = total.inputs[0]
    if is_op(total, "ReduceSum"):
        base = _squared(base)
    return _kept_axes(total) if base is not None and base is x else None


def _squared(value: ir.Value | None) -> ir.Value | None:
    """What the value is the square of."""
    product, power = _made_by(value, "Mul"), _made_by(value, "Pow")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    exponent = None if power is None else constant(power.inputs[1])
    is_square = exponent is not None and exponent.size == 1 and np.all(exponent == 2)
    return power.inputs[0] if power is not None and is_square else None


def _kept_axes(node: ir.Node) -> tuple[int, ...] | None:
    if not int_attribute(node, "keepdims", 1):
        return None
    axes = constant(input_at(node, 1))
    if axes is not None:
        return tuple(int(axis) for axis in axes.reshape(-1))
    return ints_attribute(node, "axes")


def _as_rms_norm(graph: ir.Graph, x: ir.Value, axis: int, n: int, epsilon: float) -> list[ir.Node]:
    """The nodes, over the last axis, where another one is brought by a transpose."""
    assert x.dtype is not None
    kind, name = x.dtype.numpy(), f"{x.name}/unit"
    shape = list(x.shape or ())
    order = list(range(len(shape)))
    order[axis], order[-1] = order[-1], order[axis]
    chain: list[ir.Node] = []

    def add(
        op_type: str, *inputs: ir.Value, perm: list[int] | None = None,
        sizes: list[int | ir.SymbolicDim],
    ) -> ir.Value:  # fmt: skip
        attributes = {} if perm is None else {"perm": perm}
        chain.append(new_node(op_type, inputs, attributes, like=x, shape=sizes))
        return chain[-1].outputs[0]

    rows, turned = x, [shape[i] for i in order]
    if axis != len(shape) - 1:
        rows = add("Transpose", x, perm=order, sizes=turned)
    narrow = [*turned[:-1], 1]
    last = add_initializer(graph, f"{name}/axis", np.array([-1], np.int64))
    least = add_initializer(graph, f"{name}/epsilon", np.array(epsilon, kind))
    scale = add_initializer(graph, f"{name}/scale", np.array(n**-0.5, kind))
    squares = add("Mul", rows, rows, sizes=turned)
    mean = add("ReduceMean", squares, last, sizes=narrow)
    root = add("Sqrt", add("Add", mean, least, sizes=narrow), sizes=narrow)
    scaled = add("Mul", rows, add("Reciprocal", root, sizes=narrow), sizes=turned)
    unit = add("Mul", scaled, scale, sizes=turned)
    if rows is not x:
        add("Transpose", unit, perm=order, sizes=shape)
    return chain


def _made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if is_op(node, *op_types) else None
