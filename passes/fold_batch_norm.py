"""Fold BatchNormalization into a neighbouring layer, or write it as Mul and Add.

    BN(x)_k = gamma_k (x_k - mean_k) / sqrt(var_k + epsilon) + beta_k  =  scale_k x_k + offset_k

1. after a Conv, ConvTranspose or Gemm that nothing else reads: into that layer;
2. before a Conv that nothing else reads: into that Conv, where this is exact (no padding, or no
   offset: a padded zero is not offset by BN, so the border would differ);
3. elsewhere: Mul and Add with [1, channels, 1, ...] constants.

Left alone: training mode, statistics that are not constant, an input of unknown rank.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.channel_affine import ChannelAffine, absorb, set_bias, set_weight
from ptq.passes.rewriting import (
    add_initializer,
    bypass,
    constant,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    new_node,
    rank,
    replace,
    sole_producer,
    string_attribute,
)


def fold_batch_norm(graph: ir.Graph) -> int:
    """Fold every foldable BatchNormalization of `graph`; returns how many."""
    folded = 0
    for node in graph:
        if is_op(node, "BatchNormalization"):
            affine = _affine(node)
            if affine is not None:
                folded += (
                    _into_producer(node, affine)
                    or _into_consumer(node, affine)
                    or _into_mul_add(graph, node, affine)
                )
    return folded


def _affine(node: ir.Node) -> ChannelAffine | None:
    """Scale and offset of the node's inference formula, or None when it is not constant."""
    if int_attribute(node, "training_mode", 0) or any(out.uses() for out in node.outputs[1:]):
        return None
    arrays = [constant(input_at(node, index)) for index in range(1, 5)]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, var = (np.asarray(array, np.float64) for array in arrays)
    scale = gamma / np.sqrt(var + float_attribute(node, "epsilon", 1e-5))
    return ChannelAffine(scale, beta - mean * scale)


def _into_producer(node: ir.Node, affine: ChannelAffine) -> bool:
    source = node.inputs[0]
    layer = sole_producer(source)
    if layer is None or source is None or not absorb(layer, affine):
        return False
    _take_name(node.outputs[0], source)
    return True


def _take_name(output: ir.Value, source: ir.Value) -> None:
    """`source` takes the place and the name of `output`."""
    node, name = output.producer(), output.name
    if node is not None and bypass(node, source):
        source.name = name


def _into_consumer(node: ir.Node, affine: ChannelAffine) -> bool:
    output, source = node.outputs[0], node.inputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1 or source is None:
        return False
    layer = uses[0].node
    if not is_op(layer, "Conv") or uses[0].idx != 0 or not _exact_before(layer, affine):
        return False
    weight, bias = constant(input_at(layer, 1)), constant(input_at(layer, 2))
    if weight is None or (bias is None and input_at(layer, 2) is not None):
        return False
    groups = int_attribute(layer, "group", 1)
    per_group = weight.shape[0] // groups
    spatial = (1,) * (weight.ndim - 2)
    # Channel c of group g is input channel g * (in / group) + c.
    scale = np.repeat(affine.scale.reshape(groups, -1), per_group, axis=0)
    offset = np.repeat(affine.offset.reshape(groups, -1), per_group, axis=0)
    wide = weight.astype(np.float64)
    summed = (wide * offset.reshape(offset.shape + spatial)).reshape(len(wide), -1).sum(axis=1)
    old_bias = np.zeros(len(wide)) if bias is None else bias.astype(np.float64)
    set_weight(layer, (wide * scale.reshape(scale.shape + spatial)).astype(weight.dtype))
    set_bias(layer, (old_bias + summed).astype(weight.dtype))
    return bypass(node, source)


def _exact_before(layer: ir.Node, affine: ChannelAffine) -> bool:
    if not np.any(affine.offset):
        return True
    automatic = string_attribute(layer, "auto_pad", "NOTSET")
    pads = ints_attribute(layer, "pads") or ()
    return automatic in ("NOTSET", "VALID") and not any(pads)


def _into_mul_add(graph: ir.Graph, node: ir.Node, affine: ChannelAffine) -> bool:
    source, gamma = node.inputs[0], constant(node.inputs[1])
    count = rank(source) or rank(node.outputs[0])
    if source is None or gamma is None or count is None or count < 2:
        return False
    shape = (1, -1) + (1,) * (count - 2)
    dtype = source.dtype.numpy() if source.dtype is not None else gamma.dtype
    stem = node.outputs[0].name or "batch_norm"
    scale = add_initializer(graph, f"{stem}/scale", affine.scale.reshape(shape).astype(dtype))
    offset = add_initializer(graph, f"{stem}/offset", affine.offset.reshape(shape).astype(dtype))
    scaled = new_node("Mul", [source, scale], like=source)
    scaled.outputs[0].shape = source.shape
    replace(node, [scaled, new_node("Add", [scaled.outputs[0], offset])])
    return True
