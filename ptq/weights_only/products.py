"""Matrix products with constant weights: what is quantised, and what has weights but is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import RecipeError
from ptq.integer.layer_precision import map_precisions
from ptq.integer.patterns import matching
from ptq.passes.rewriting import constant, float_attribute, int_attribute, is_op
from ptq.precision import UNSAID
from ptq.recipe import Recipe
from ptq.targets.matmul_nbits import WIDTHS

LEAST_ELEMENTS = 1024
"""Smaller constants are biases, norms and tables: they are not worth a word."""


@dataclass(frozen=True)
class Product:
    """y = x w^T (+ bias): a MatMul or Gemm with a constant weight.

    bits: of its weight. transposed: the stored weight is [N, K]; else [K, N].
    """

    node: ir.Node
    bits: int
    transposed: bool
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def input(self) -> str:
        """The name of x."""
        return str(self.node.inputs[0].name)  # type: ignore[union-attr]

    @property
    def shape(self) -> tuple[int, int]:
        """N, K."""
        dims = self.node.inputs[1].const_value.shape.numpy()  # type: ignore[union-attr]
        return (dims[0], dims[1]) if self.transposed else (dims[1], dims[0])

    def rows(self) -> npt.NDArray[np.float32]:
        """The weight, one row an output channel: [N, K] float32."""
        array = constant(self.node.inputs[1])
        if array is None:
            raise ValueError(f"{self.name} has no weight")
        return np.array(array if self.transposed else array.T, np.float32, order="C")


@dataclass(frozen=True)
class StaysFloat:
    """A node whose weights are not quantised, and why."""

    node: ir.Node
    reason: str


def find_products(
    graph: ir.Graph, recipe: Recipe
) -> tuple[tuple[Product, ...], tuple[StaysFloat, ...]]:
    """The products that are quantised, in order, and the other nodes with weights.

    Raises:
        RecipeError: a pattern that matches nothing, a width that MatMulNBits does not have, or
            nothing that could be quantised.
    """
    nodes = list(graph)
    out = _left_out(nodes, recipe)
    widths = map_precisions(nodes, recipe.precision_map)
    products, stays = [], []
    for node in nodes:
        said = widths.get(id(node), UNSAID)
        reason = "kept by the precision map" if said.float else out.get(id(node)) or _why_not(node)
        if not reason:
            products.append(_product(node, said.weight_bits or recipe.weight_bits))
        elif _weights(node):
            stays.append(StaysFloat(node, reason))
    if not products:
        raise RecipeError(
            f"{recipe.precision}: no MatMul or Gemm with a constant weight is left to quantise; "
            "weights alone are quantised in matrix products only"
        )
    if recipe.edge_bits is not None:
        products[-1] = _product(products[-1].node, recipe.edge_bits)
    return tuple(products), tuple(stays)


def _product(node: ir.Node, bits: int) -> Product:
    if bits not in WIDTHS:
        raise RecipeError(
            f"{node.name}: got {bits} bits; wanted 2, 3, 4 or 8, which onnxruntime multiplies with"
        )
    gemm = is_op(node, "Gemm")
    transposed = bool(gemm and int_attribute(node, "transB", 0))
    return Product(node, bits, transposed, node.inputs[2] if len(node.inputs) > 2 else None)


def _left_out(nodes: Sequence[ir.Node], recipe: Recipe) -> dict[int, str]:
    """Why include and exclude leave nodes out, by the node's id."""

    def ids(patterns: Iterable[str], option: str) -> set[int]:
        return {id(node) for p in patterns for node in matching(nodes, p, option)}

    out = {}
    if recipe.include:
        included = ids(recipe.include, "--include")
        out = {id(n): "not in --include" for n in nodes if id(n) not in included}
    return out | dict.fromkeys(ids(recipe.exclude, "--exclude"), "excluded by the user")


def _weights(node: ir.Node) -> int:
    """Elements of the node's constants, if they are many."""
    sizes = [v.const_value.size for v in node.inputs if v is not None and v.const_value is not None]
    return max((size for size in sizes if size >= LEAST_ELEMENTS), default=0)


def _why_not(node: ir.Node) -> str:
    """Why a node is no product that MatMulNBits can compute, or an empty string."""
    if not is_op(node, "MatMul", "Gemm"):
        return f"{node.op_type} has no operator with weights of few bits"
    x, weight = node.inputs[:2]
    if weight is None or weight.const_value is None or weight.is_graph_input():
        return "its weight is not constant"
    if x is None or x.const_value is not None:
        return "its first operand is a constant"
    if len(weight.const_value.shape) != 2:
        return "its weight has more than two axes"
    if weight.const_value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its weight is {weight.const_value.dtype.name}, not FLOAT or FLOAT16"
    return _why_not_gemm(node) if is_op(node, "Gemm") else ""


def _why_not_gemm(node: ir.Node) -> str:
    scaled = any(float_attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if scaled or int_attribute(node, "transA", 0):
        return "a Gemm with alpha, beta or transA"
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (bias is None or bias.ndim != 1):
        return "a Gemm whose C is not a constant row"
    return ""
