"""Compounds: nodes that together are one integer step, found from the graph and never from names.

    norm      LayerNormalization, RMSNormalization, and what exporters write for them:
              c * Reciprocal(Sqrt(ReduceMean(c * c) + epsilon)) [* scale [+ bias]], where
              c = x - ReduceMean(x) (layer norm) or x itself (RMS norm), over the last axis
    softmax   Softmax(Where(keep, scores, very negative constant)): attention under a mask

What lies inside a compound must be read by it only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.claims import constant, integer, is_activation, rank, real, static_dim

LONGEST_ROW = 2**18
"""Rows that a norm may have: sums of squares then stay below 2^50."""
LONGEST_SOFTMAX = 2**15
"""Elements of a softmax whose sums stay below 2^31."""
MASKED = -1e4
"""A score at or below this is masked: its exponential is zero."""


@dataclass(frozen=True)
class Norm:
    """x -> (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    centred: False for RMS norm, which takes no mean away. scale, bias: [n] float64.
    """

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    centred: bool
    epsilon: float
    scale: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    kind: str = "norm"


@dataclass(frozen=True)
class MaskedSoftmax:
    """softmax of scores where `keep` (bool, broadcast to them) is true, zero elsewhere."""

    nodes: tuple[ir.Node, ...]
    source: ir.Value
    keep: ir.Value
    kind: str = "softmax"


Compound = Norm | MaskedSoftmax


def find_compounds(nodes: Iterable[ir.Node], excluded: set[int]) -> list[Compound]:
    """Every compound, in the order of its last node; none with a node whose id is excluded."""
    found: list[Compound] = []
    for node in nodes:
        match = MATCHERS.get(node.op_type)
        compound = match(node) if match is not None else None
        if compound is not None and _closed(compound):
            inside = {id(n) for n in compound.nodes}
            if not inside & excluded:
                found.append(compound)
    return found


def _closed(compound: Compound) -> bool:
    """True if nobody outside reads what lies inside."""
    inside = {id(n) for n in compound.nodes}
    return all(
        id(user) in inside
        for node in compound.nodes[:-1]
        for value in node.outputs
        for user in value.consumers()
    ) and not any(v.is_graph_output() for n in compound.nodes[:-1] for v in n.outputs)


def _norm_operator(node: ir.Node) -> Norm | None:
    """LayerNormalization or RMSNormalization over the last axis, with constant scale and bias."""
    source, scale = node.inputs[0], constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = constant(node.inputs[2]) if has_bias else np.zeros(1)
    n, size = _row(source), rank(source)
    if source is None or n is None or size is None or scale is None or bias is None:
        return None
    last = integer(node, "axis", -1) in (-1, size - 1)
    if not last or scale.size not in (1, n) or bias.size not in (1, n):
        return None
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    centred = node.op_type == "LayerNormalization"
    epsilon = real(node, "epsilon", 1e-5)
    return Norm((node,), source, centred, epsilon, _wide(scale, n), _wide(bias, n))


def _written_norm(node: ir.Node) -> Norm | None:
    """The product c * Reciprocal(Sqrt(mean of squares + epsilon)), then scale and bias."""
    core = _core(node)
    if core is None:
        return None
    n = len(core.scale)
    for op_type in ("Mul", "Add"):
        user, array = _only_constant_user(core.nodes[-1].outputs[0], op_type)
        if user is None or array is None or array.size not in (1, n):
            continue
        if array.size == n and array.shape[-1:] != (n,):
            continue
        row, nodes = _wide(array, n), (*core.nodes, user)
        core = (
            replace(core, nodes=nodes, scale=row)
            if op_type == "Mul"
            else replace(core, nodes=nodes, bias=row)
        )
    return core


def _core(node: ir.Node) -> Norm | None:
    for centred, inverse in (node.inputs, tuple(reversed(node.inputs))):
        reciprocal = _made_by(inverse, "Reciprocal")
        root = _made_by(_first(reciprocal), "Sqrt")
        total = _made_by(_first(root), "Add")
        if reciprocal is None or root is None or total is None or centred is None:
            continue
        mean, epsilon = _activation_and_number(total)
        square = _mean_over_rows(mean)
        squared = None if square is None else square.inputs[0]
        power = _square_of(squared, centred)
        n = _row(centred)
        if square is None or power is None or epsilon is None or n is None:
            continue
        inside = (power, square, total, root, reciprocal, node)
        ones, zeros = np.ones(n), np.zeros(n)
        source = _centring(centred)
        if source is None:
            return Norm(inside, centred, False, epsilon, ones, zeros)
        x, before = source
        return Norm((*before, *inside), x, True, epsilon, ones, zeros)
    return None


def _centring(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """x and the nodes, if the value is x - ReduceMean(x)."""
    difference = _made_by(value, "Sub")
    if difference is None:
        return None
    x, mean = difference.inputs
    average = _mean_over_rows(mean)
    if x is None or average is None or average.inputs[0] is not x:
        return None
    return x, (average, difference)


def _mean_over_rows(value: ir.Value | None) -> ir.Node | None:
    """The ReduceMean over the last axis, kept, that makes the value."""
    node = _made_by(value, "ReduceMean")
    size = None if node is None else rank(node.inputs[0])
    if node is None or size is None or not integer(node, "keepdims", 1):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None and "axes" in node.attributes:
        axes = np.asarray(node.attributes["axes"].as_ints())
    return node if axes is not None and [int(a) % size for a in axes] == [size - 1] else None


def _square_of(value: ir.Value | None, base: ir.Value) -> ir.Node | None:
    """The node that squares `base`: Pow with 2, or a product with itself."""
    power, product = _made_by(value, "Pow"), _made_by(value, "Mul")
    if power is not None and power.inputs[0] is base:
        exponent = constant(power.inputs[1])
        return power if exponent is not None and exponent.size == 1 and exponent == 2 else None
    both = product is not None and all(v is base for v in product.inputs)
    return product if both else None


def _activation_and_number(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    for value, other in (node.inputs, tuple(reversed(node.inputs))):
        array = constant(other)
        if is_activation(value) and array is not None and array.size == 1:
            return value, float(array.reshape(()))
    return None, None


def _only_constant_user(
    value: ir.Value, op_type: str
) -> tuple[ir.Node | None, npt.NDArray[np.generic] | None]:
    """The one reader of the value, if it is such an operator with a constant, and the constant."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output():
        return None, None
    user = users[0].node
    if user.op_type != op_type:
        return None, None
    return user, constant(next((v for v in user.inputs if v is not value), None))


def _masked_softmax(node: ir.Node) -> MaskedSoftmax | None:
    where = _made_by(node.inputs[0], "Where")
    if where is None or integer(node, "axis", -1) not in (-1, (rank(node.inputs[0]) or 0) - 1):
        return None
    keep, scores, fill = where.inputs
    array = constant(fill)
    if keep is None or scores is None or array is None or not is_activation(scores):
        return None
    if array.size != 1 or array.max() > MASKED or rank(scores) != rank(node.inputs[0]):
        return None
    if (static_dim(scores, -1) or 0) >= LONGEST_SOFTMAX:
        return None
    return MaskedSoftmax((where, node), scores, keep)


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _first(node: ir.Node | None) -> ir.Value | None:
    return None if node is None else node.inputs[0]


def _row(value: ir.Value | None) -> int | None:
    """Length of the last axis, where a norm may have it."""
    n = static_dim(value, -1)
    return n if n is not None and 1 < n <= LONGEST_ROW else None


def _wide(array: npt.NDArray[np.generic], n: int) -> npt.NDArray[np.float64]:
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (n,)).copy()


MATCHERS: dict[str, Callable[[ir.Node], Compound | None]] = {
    "LayerNormalization": _norm_operator,
    "RMSNormalization": _norm_operator,
    "SimplifiedLayerNormalization": _norm_operator,
    "Mul": _written_norm,
    "Softmax": _masked_softmax,
}
