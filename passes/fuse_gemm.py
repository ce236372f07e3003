"""Write MatMul and Add of rank 2 as Gemm, and give every Gemm alpha = beta = 1.

    Add(MatMul(x, W), b)  =  Gemm(x, W, b)           x: [rows, in], W: [in, out], b: [out]
    Gemm(alpha, beta)     =  Gemm with alpha W and beta b

Left alone: x of another or unknown rank, W or b not constant, a product that something else reads,
b that varies along the rows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.channel_affine import channels, set_bias, set_weight
from ptq.passes.rewriting import (
    add_initializer,
    constant,
    float_attribute,
    input_at,
    is_op,
    new_node,
    rank,
    remove_unused,
    replace,
    sole_producer,
)


def fuse_gemm(graph: ir.Graph) -> int:
    """Fuse and normalize every matrix product of `graph` that allows it; returns how many."""
    fused = sum(_fuse(graph, node) for node in graph if is_op(node, "Add"))
    if fused:
        remove_unused(graph)
    return fused + sum(_normalize(node) for node in graph if is_op(node, "Gemm"))


def _fuse(graph: ir.Graph, add: ir.Node) -> bool:
    for index in (0, 1):
        product, bias = sole_producer(add.inputs[index]), constant(add.inputs[1 - index])
        if product is None or bias is None or not is_op(product, "MatMul"):
            continue
        weight = constant(product.inputs[1])
        if rank(product.inputs[0]) != 2 or weight is None or weight.ndim != 2:
            continue
        if not np.issubdtype(weight.dtype, np.floating):
            continue
        if (
            bias.ndim > 2
            or bias.size not in (1, weight.shape[1])
            or bias.shape[:-1] not in ((), (1,))
        ):
            continue
        wide = np.broadcast_to(bias.reshape(-1), (weight.shape[1],))
        name = f"{add.outputs[0].name}/bias"
        inputs = [*product.inputs, add_initializer(graph, name, wide)]
        replace(add, [new_node("Gemm", inputs)])
        return True
    return False


def _normalize(gemm: ir.Node) -> bool:
    weight, count = constant(gemm.inputs[1]), channels(gemm)
    alpha, beta = float_attribute(gemm, "alpha", 1.0), float_attribute(gemm, "beta", 1.0)
    value = input_at(gemm, 2)
    bias = constant(value)
    if weight is None or count is None or (value is not None and bias is None):
        return False
    wide = bias is not None and bias.shape != (count,)
    if (
        bias is not None
        and wide
        and (bias.size not in (1, count) or bias.shape[:-1] not in ((), (1,)))
    ):
        return False
    changed = alpha != 1 or (bias is not None and (beta != 1 or wide))
    if alpha != 1:
        set_weight(gemm, (weight.astype(np.float64) * alpha).astype(weight.dtype))
    if bias is not None and (beta != 1 or wide):
        row = bias.reshape(-1).astype(np.float64) * beta
        set_bias(gemm, np.broadcast_to(row, (count,)).astype(weight.dtype))
    gemm.attributes.pop("alpha", None)
    gemm.attributes.pop("beta", None)
    return changed
