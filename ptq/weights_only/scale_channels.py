"""Scale the inputs of products against their weights before they are rounded.

    (x / s) (W s)^T = x W^T,   s_j = 2^round(log2(rms(x_j)^a / c)),   a in ALPHAS

AWQ (https://arxiv.org/abs/2306.00978, eq. 4 and 5): weights of loud inputs get more of their
group's levels. Here s is a power of two, so that the float network stays the same bit for bit, and
a is chosen by the error of what is left after this recipe's rounding, which feeds errors of loud
inputs back to others anyway.

The scales go into what makes x: the constant rows of a norm, or, where x = a * u is gated, the rows
of the rounded weight that u comes from, as factors of their groups' scales. Where x is anything
else (what attention's heads give, say), or is read elsewhere, it keeps its scale.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import add_initializer, constant, is_op
from ptq.passes.rounding import row_errors
from ptq.recipe import Recipe
from ptq.targets.matmul_nbits import in_half
from ptq.weights_only.products import Product
from ptq.weights_only.round_product import Moments, Rounded, pad_gram, round_product

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


@dataclass(frozen=True)
class Source:
    """What makes the input of products, and takes their scales.

    rows: its inputs that are constant rows; without any, `factor` is the output of `product`.
    """

    node: ir.Node
    rows: tuple[int, ...] = ()
    product: str = ""
    factor: str = ""


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


def divide_rows(graph: ir.Graph, source: Source, scale: Array) -> None:
    """Divide the source's constant rows by s; each becomes a constant of its own."""
    for index in source.rows:
        value = source.node.inputs[index]
        row = constant(value)
        if row is not None and value is not None:
            divided = add_initializer(
                graph, f"{value.name}/scaled", (row / scale).astype(row.dtype)
            )
            source.node.replace_input_with(index, divided)


def divide_output(rounded: Rounded, scale: Array) -> Rounded | None:
    """The product with its outputs divided by s; None where half precision cannot hold that."""
    before = rounded.blocked.scale
    after = before / scale[:, None]
    if in_half(before) and not in_half(after):
        return None
    blocked = replace(rounded.blocked, scale=after)
    return replace(rounded, blocked=blocked, exact=rounded.exact / scale[:, None])


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


def source_of(
    graph: ir.Graph, products: Sequence[Product], rounded: Container[str]
) -> Source | None:
    """What takes the scales of the products' input; None if nothing does.

    graph: of the network that is turned into the quantised one, these products not yet.
    rounded: products that are, and may still change.
    """
    names, size = {p.name for p in products}, products[0].shape[1]
    x = next(n for n in graph if n.name == products[0].name).inputs[0]
    node = None if x is None else x.producer()
    if x is None or node is None or not is_op(node, *AFFINE) or x.is_graph_output():
        return None
    if any(use.node.name not in names or use.idx != 0 for use in x.uses()):
        return None
    indices = AFFINE[node.op_type]
    given = [i for i in indices if i < len(node.inputs) and node.inputs[i] is not None]
    rows = tuple(i for i in given if _is_row(node.inputs[i], size))
    if len(rows) == (1 if node.op_type == "Mul" else len(given)):
        return Source(node, rows)
    return _gated(node, rounded) if node.op_type == "Mul" and not rows else None


def _gated(node: ir.Node, rounded: Container[str]) -> Source | None:
    """The source a * u, if u is what a rounded product makes, and nothing else reads it."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if value is None or maker is None or maker.name not in rounded:
            continue
        if len(value.uses()) == 1 and not value.is_graph_output():
            return Source(node, product=str(maker.name), factor=str(value.name))
    return None


def _is_row(value: ir.Value | None, size: int) -> bool:
    tensor = None if value is None or value.is_graph_input() else value.const_value
    return tensor is not None and tuple(tensor.shape) == (size,)
