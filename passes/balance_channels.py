"""Balance the channels of a layer norm, or of a curve such as GELU, with the weights behind them.

    (y / s) @ (s W) = y @ W,   LN(x; g, b) / s = LN(x; g / s, b / s),   f(x) / s: a table a channel

for any s > 0, a number a channel: exact in float. With s = 1 a channel far wider than the others
takes the codes of all; with s = its range the weights have the outliers instead. Candidates:

    s_j = max |x_j|^a / max |w_j|^(1 - a), a in ALPHAS     SmoothQuant, arXiv 2211.10438, eq. 4
    s_j = max(1, max |x_j| / q), q a quantile of them all  only the outliers
    s_j = range of x_j                                     RepQ-ViT, arXiv 2212.08254, scales only

the first and the last normalised to a geometric mean of one. For every source the candidate is kept
whose product, with input and weights rounded to the recipe's widths, is nearest to the float
product on samples that s was not made from; s = 1 is a candidate, and the winner must gain GAIN
over it. Sources whose products have weights in common (tied layers) take one s, so that they keep
them in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.float import FloatRunner
from ptq.passes.rewriting import add_initializer, constant, int_attribute, is_op, new_node

Array = npt.NDArray[Any]
Batches = Callable[[int], Iterator[Mapping[str, Array]]]

ALPHAS = (0.25, 0.5, 0.75)
CAPS = (0.9, 0.98)
GAIN = 0.2
ROWS = 1024
BATCH = 8
SMALLEST = 1e-5
CURVES = ("Gelu", "Erf", "Sigmoid", "Tanh", "Swish", "Mish", "Softplus", "HardSwish", "HardSigmoid",
          "Elu")  # fmt: skip
ARITHMETIC = ("Mul", "Add", "Sub", "Div", "Pow")
LONGEST_FUNCTION = 12
"""Nodes in a row of one function; GELU by tanh, written out, has 9."""


@dataclass(frozen=True)
class Balanced:
    """A node whose channels were rescaled: relative squared error of its products, held out."""

    node: str
    candidate: str
    error_before: float
    error_after: float


def balance_channels(
    model: ir.Model, batches: Batches, weight_bits: int, activation_bits: int
) -> tuple[ir.Model, tuple[Balanced, ...]]:
    """A copy of the prepared model with every source balanced that gains, and what was done."""
    model = model.clone()
    found = {
        str(node.outputs[0].name): (node, products)
        for node in model.graph
        if (_is_norm(node) or _is_function(node)) and (products := _products(node))
    }
    if not found:
        return model, ()
    rows = _rows(model, list(found), batches)
    done = []
    for names in _tied({name: products for name, (_, products) in found.items()}):
        meetings = [(rows[name], _weights(found[name][1])) for name in names]
        made = _best(meetings, (weight_bits, activation_bits))
        if made is not None:
            candidate, factor, before, after = made
            for node in (found[name][0] for name in names):
                (_divide_norm if _is_norm(node) else _divide_function)(model.graph, node, factor)
                done.append(Balanced(str(node.name), candidate, before, after))
            products = [product for name in names for product in found[name][1]]
            _multiply_weights(model.graph, products, factor)
    return model, tuple(done)


def _tied(products: Mapping[str, list[ir.Node]]) -> list[list[str]]:
    """The sources in groups whose products have weights in common, in order of the first."""
    group_of: dict[ir.Value | None, list[str]] = {}
    for name, nodes in products.items():
        weights = [node.inputs[1] for node in nodes]
        merged = {id(g): g for w in weights if (g := group_of.get(w)) is not None}
        group = [other for known in merged.values() for other in known] + [name]
        others = [w for w, known in group_of.items() if id(known) in merged]
        group_of |= dict.fromkeys([*weights, *others], group)
    return list({id(group): group for group in group_of.values()}.values())


def _is_norm(node: ir.Node) -> bool:
    affine = [constant(value) for value in node.inputs[1:]]
    rows = all(array is not None and array.ndim == 1 for array in affine)
    return is_op(node, "LayerNormalization") and rows


def _is_function(node: ir.Node) -> bool:
    """True if elementwise nodes, a curve among them, compute the output from one tensor.

    From the output backwards, always the node that comes last: where one tensor is left and a curve
    is behind, everything is a function of that tensor.
    """
    order = {id(other): index for index, other in enumerate(node.graph or ())}
    left, curved = [node.outputs[0]], False
    for _ in range(LONGEST_FUNCTION):
        made = max((v.producer() for v in left), key=lambda n: order.get(id(n), -1))
        if made is None or not is_op(made, *CURVES, *ARITHMETIC):
            return False
        curved = curved or is_op(made, *CURVES)
        read = [v for v in made.inputs if v is not None and constant(v) is None]
        left = list({id(v): v for v in (*left, *read) if v.producer() is not made}.values())
        if curved and len(left) == 1:
            return True
    return False


def _products(source: ir.Node) -> list[ir.Node]:
    """The products with constant weights that read the source, if nothing else does."""
    output, uses = source.outputs[0], list(source.outputs[0].uses())
    if output.is_graph_output():
        return []
    for use in uses:
        weight = constant(use.node.inputs[1]) if is_op(use.node, "MatMul", "Gemm") else None
        if weight is None or weight.ndim != 2 or use.idx != 0:
            return []
        if int_attribute(use.node, "transA", 0):
            return []
    return [use.node for use in uses]


def _rows_first(product: ir.Node) -> Array:
    """The weight as [in, out] float64."""
    weight = constant(product.inputs[1])
    if weight is None:
        raise ValueError(f"{product.name}: its weight is not constant")
    wide = weight.astype(np.float64)
    return wide.T if int_attribute(product, "transB", 0) else wide


def _weights(products: list[ir.Node]) -> Array:
    """The weights of all products that read one source, beside each other: [in, out] float64."""
    return np.concatenate([_rows_first(product) for product in products], axis=1)


def _rows(model: ir.Model, names: list[str], batches: Batches) -> dict[str, Array]:
    """Up to ROWS rows of every tensor, spread over the samples: [rows, channels]."""
    runner = FloatRunner(model, names)
    taken: dict[str, list[Array]] = {name: [] for name in names}
    count = 0
    for batch in batches(BATCH):
        values = runner.run(batch)
        for name in names:
            flat = values[name].reshape(-1, values[name].shape[-1])
            taken[name].append(flat[:: max(1, len(flat) // 64)])
        count += len(taken[names[0]][-1])
        if count >= ROWS:
            break
    runner.close()
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in taken.items()}


def _best(
    meetings: list[tuple[Array, Array]], bits: tuple[int, int]
) -> tuple[str, Array, float, float] | None:
    """Name, factor, error before and after of the best candidate; None if s = 1 is good enough.

    meetings: rows [n, in] and weights [in, out] of every source that s is to serve.
    """
    held_out = [(x[1::2], weight) for x, weight in meetings]
    if any(len(x) < 2 for x, _ in held_out):
        return None
    made_from = np.concatenate([x[::2] for x, _ in meetings])
    weights = np.concatenate([weight for _, weight in meetings], axis=1)
    errors = {
        name: (float(np.mean([_error(x, weight, s, bits) for x, weight in held_out])), s)
        for name, s in _candidates(made_from, weights)
    }
    before = errors["none"][0]
    name = min(errors, key=lambda key: errors[key][0])
    after, factor = errors[name]
    return (name, factor, before, after) if after < (1 - GAIN) * before else None


def _candidates(x: Array, weight: Array) -> Iterable[tuple[str, Array]]:
    width, weights = np.abs(x).max(axis=0), np.abs(weight).max(axis=1)
    width, weights = np.maximum(width, SMALLEST), np.maximum(weights, SMALLEST)
    yield "none", np.ones(len(width))
    for alpha in ALPHAS:
        yield f"smooth {alpha}", _normalised(width**alpha / weights ** (1 - alpha))
    for share in CAPS:
        yield f"cap {share}", np.maximum(width / np.quantile(width, share), 1.0)
    yield "range", _normalised(np.maximum(np.ptp(x, axis=0), SMALLEST))


def _normalised(factor: Array) -> Array:
    scaled: Array = factor / math.exp(float(np.log(factor).mean()))
    return scaled


def _error(x: Array, weight: Array, factor: Array, bits: tuple[int, int]) -> float:
    """Relative squared error of the rounded product: input affine, weights symmetric by column."""
    product = x @ weight
    scaled, multiplied = x / factor, weight * factor[:, None]
    low, high = min(scaled.min(), 0.0), max(scaled.max(), 0.0)
    step = max(high - low, SMALLEST) / (2 ** bits[1] - 1)
    unit = np.maximum(np.abs(multiplied).max(axis=0), SMALLEST) / (2 ** (bits[0] - 1) - 1)
    found = (np.rint(scaled / step) * step) @ (np.rint(multiplied / unit) * unit)
    return float(((found - product) ** 2).sum() / max((product**2).sum(), SMALLEST))


def _divide_norm(graph: ir.Graph, norm: ir.Node, factor: Array) -> None:
    """Divide scale and bias; each gets a constant of its own."""
    for index, value in enumerate(norm.inputs[1:], 1):
        array = constant(value)
        if array is not None and value is not None:
            _replace(graph, norm, index, array.astype(np.float64) / factor)


def _divide_function(graph: ir.Graph, function: ir.Node, factor: Array) -> None:
    """Divide the output: a product with a constant row, which joins the function's table."""
    output = function.outputs[0]
    uses = list(output.uses())
    row = add_initializer(graph, f"{output.name}/balance", (1 / factor).astype(np.float32))
    scaled = new_node("Mul", [output, row], like=output)
    scaled.outputs[0].shape = output.shape
    scaled.name, scaled.outputs[0].name = f"{function.name}/balance", f"{output.name}/balanced"
    graph.insert_after(function, scaled)
    for use in uses:
        use.node.replace_input_with(use.idx, scaled.outputs[0])


def _multiply_weights(graph: ir.Graph, products: list[ir.Node], factor: Array) -> None:
    """Multiply the rows of the weights; what is shared by products stays shared by them."""
    made: dict[tuple[ir.Value | None, int], ir.Value] = {}
    for node in products:
        key = node.inputs[1], int_attribute(node, "transB", 0)
        if key not in made:
            rows = _rows_first(node) * factor[:, None]
            made[key] = _initializer(graph, node, 1, rows.T if key[1] else rows)
        node.replace_input_with(1, made[key])


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    node.replace_input_with(index, _initializer(graph, node, index, array))


def _initializer(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> ir.Value:
    value = node.inputs[index]
    name = f"{value.name if value is not None else node.name}/balanced"
    return add_initializer(graph, name, array.astype(np.float32))
