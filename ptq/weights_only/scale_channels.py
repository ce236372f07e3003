"""Scale the inputs of products against their weights before they are rounded.

    (x / s) (W s)^T = x W^T,   s_j = 2^round(log2(rms(x_j)^a / c)),   a in ALPHAS

AWQ (https://arxiv.org/abs/2306.00978, eq. 4 and 5): weights of loud inputs get more of their
group's levels. Here s is a power of two, so that the float network stays the same bit for bit, and
a is chosen by the error of what is left after this recipe's rounding, which feeds errors of loud
inputs back to others anyway.

The scales go into what makes x: the constant row of a norm, or of a product with one. Where x is
anything else, or read by anything but these products, it keeps its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import add_initializer, constant, is_op
from ptq.passes.rounding import row_errors
from ptq.recipe import Recipe
from ptq.weights_only.products import Product
from ptq.weights_only.round_product import Moments, pad_gram, round_product

Array = npt.NDArray[Any]

ALPHAS = (0.25, 0.5, 0.75, 1.0)
GAIN = 0.05
"""Share of the error that scaling must take away; below it the graph is left alone."""
PROBE = 64
"""Rows of a weight that the exponent is chosen by."""
SMALLEST = 1e-6  # of the loudest input; quieter ones are as good as silent
AFFINE: Mapping[str, tuple[int, ...]] = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "Mul": (0, 1),
}
"""Operators -> inputs whose constant rows multiply, or are added to, the output's channels."""


def sharing(products: Sequence[Product]) -> Iterator[tuple[Product, ...]]:
    """Products by their input."""
    names = dict.fromkeys(p.input for p in products)
    yield from (tuple(p for p in products if p.input == name) for name in names)


def choose_scale(
    products: Sequence[Product], moments: Moments, recipe: Recipe
) -> tuple[float, Array] | None:
    """The exponent and s, [K], for products of one input; None where scaling gains too little.

    Nearest levels, which cost little, choose the exponent; this recipe's rounding confirms it.
    """
    probes = [(p.rows(), p.bits) for p in products]
    probes = [(w[:: -(-len(w) // PROBE)], bits) for w, bits in probes]
    candidates: tuple[float, ...] = (0.0, *ALPHAS)
    for rounding in ("nearest", recipe.rounding):
        how = recipe.replace(rounding=rounding)
        errors = {a: _error(probes, _scale(moments, a), moments, how) for a in candidates}
        alpha = min(errors, key=lambda a: errors[a])
        if errors[alpha] >= (1 - GAIN) * errors[0.0]:
            return None
        candidates = (0.0, alpha)
    return alpha, _scale(moments, alpha)


def fold_scale(graph: ir.Graph, products: Sequence[Product], scale: Array) -> None:
    """Divide what makes the products' input by s: each row becomes a constant of its own."""
    for node, index in rows_of_source(graph, products):
        row = constant(node.inputs[index])
        if row is not None:
            divided = (row / scale).astype(row.dtype)
            name = f"{node.inputs[index].name}/scaled"  # type: ignore[union-attr]
            node.replace_input_with(index, add_initializer(graph, name, divided))


def _scale(moments: Moments, alpha: float) -> Array:
    """Powers of two around one, [K]."""
    loudness = np.sqrt(np.diag(moments.gram[0]))
    loudness = np.maximum(loudness, SMALLEST * max(loudness.max(), np.finfo(float).tiny))
    exponents = alpha * np.log2(loudness)
    middle = (exponents.max() + exponents.min()) / 2
    return np.asarray(np.exp2(np.rint(exponents - middle)))


def _error(
    probes: Sequence[tuple[Array, int]], scale: Array, moments: Moments, recipe: Recipe
) -> float:
    """Squared error of the rounded products' outputs, against what they aim at."""
    scaled = moments.scaled(scale)
    gram, total = pad_gram(scaled.gram, recipe.block_size), 0.0
    for weight, bits in probes:
        found = round_product(weight * scale, bits, recipe, scaled)
        total += float(row_errors(found.exact, found.blocked.dequantize(), gram).sum())
    return total


def rows_of_source(graph: ir.Graph, products: Sequence[Product]) -> list[tuple[ir.Node, int]]:
    """The node that makes the products' input, with each of its constant rows; none if s cannot go
    there.

    graph: of the network that is turned into the quantised one; the products are not yet.
    """
    names, size = {p.name for p in products}, products[0].shape[1]
    x = next(n for n in graph if n.name == products[0].name).inputs[0]
    source = None if x is None else x.producer()
    if x is None or source is None or not is_op(source, *AFFINE) or x.is_graph_output():
        return []
    if any(use.node.name not in names or use.idx != 0 for use in x.uses()):
        return []
    indices = AFFINE[source.op_type]
    given = [i for i in indices if i < len(source.inputs) and source.inputs[i] is not None]
    rows = [i for i in given if _is_row(source.inputs[i], size)]
    wanted = 1 if source.op_type == "Mul" else len(given)
    return [(source, i) for i in rows] if len(rows) == wanted else []


def _is_row(value: ir.Value | None, size: int) -> bool:
    tensor = None if value is None or value.is_graph_input() else value.const_value
    return tensor is not None and tuple(tensor.shape) == (size,)
