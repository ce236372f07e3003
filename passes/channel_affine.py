"""y * scale + offset per output channel, absorbed by the layer that made y.

The algebra, for a layer y = W x + b (convolution, transposed convolution or matrix product) and an
output channel k:

    scale_k * (W_k x + b_k) + offset_k  =  (scale_k W_k) x + (scale_k b_k + offset_k)

computed in float64 and rounded once to the weight's own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import (
    Array,
    add_initializer,
    constant,
    float_attribute,
    input_at,
    int_attribute,
    is_op,
    rank,
)

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelAffine:
    """`scale`, `offset`: [channels] float64, or [1] where one number serves every channel."""

    scale: Vector
    offset: Vector


def channels(layer: ir.Node) -> int | None:
    """The number of output channels of a layer that can absorb an affine, or None."""
    weight = constant(input_at(layer, 1))
    if weight is None or not np.issubdtype(weight.dtype, np.floating):
        return None
    if is_op(layer, "Conv"):
        return int(weight.shape[0])
    if is_op(layer, "ConvTranspose"):
        return int(weight.shape[1]) * int_attribute(layer, "group", 1)
    if is_op(layer, "Gemm") and weight.ndim == 2:
        return int(weight.shape[0 if int_attribute(layer, "transB", 0) else 1])
    return None


def vector_along_channels(array: Array, layer: ir.Node) -> Vector | None:
    """`array`, broadcast against the layer's output, as [channels] or [1]; None if it varies more.

    The channel axis is 1 in every layer that `channels` accepts.
    """
    count = channels(layer)
    if count is None:
        return None
    output_rank = 2 if is_op(layer, "Gemm") else rank(layer.outputs[0]) or rank(layer.inputs[1])
    if output_rank is None or array.ndim > output_rank:
        return None
    if array.size == 1:
        return np.asarray(array.reshape(1), np.float64)
    aligned = array.reshape((1,) * (output_rank - array.ndim) + array.shape)
    expected = tuple(count if axis == 1 else 1 for axis in range(output_rank))
    return np.asarray(aligned.reshape(-1), np.float64) if aligned.shape == expected else None


def absorb(layer: ir.Node, affine: ChannelAffine) -> bool:
    """Rewrite the layer's constants so that it computes the affine too; False when it cannot."""
    count, weight = channels(layer), constant(input_at(layer, 1))
    bias = _bias(layer)
    if count is None or weight is None or bias is None:
        return False
    scale = np.broadcast_to(affine.scale, (count,))
    new_weight = weight.astype(np.float64) * _along_weight(layer, weight, scale)
    new_bias = bias * scale + affine.offset
    if not (_representable(new_weight, weight.dtype) and _representable(new_bias, weight.dtype)):
        return False
    set_weight(layer, new_weight.astype(weight.dtype))
    set_bias(layer, np.broadcast_to(new_bias, (count,)).astype(weight.dtype))
    return True


def set_weight(layer: ir.Node, weight: Array) -> None:
    """Give the layer a weight of its own; other readers of the old one keep the old one."""
    old = layer.inputs[1]
    if layer.graph is not None and old is not None and isinstance(layer.graph, ir.Graph):
        name = f"{(old.name or 'weight').removesuffix('/folded')}/folded"
        layer.replace_input_with(1, add_initializer(layer.graph, name, weight))


def set_bias(layer: ir.Node, bias: Array) -> None:
    """Give the layer a bias of its own: [channels], for Gemm with beta = 1."""
    if not isinstance(layer.graph, ir.Graph):
        return
    old = input_at(layer, 2)
    stem = old.name if old is not None and old.name else f"{layer.outputs[0].name}/bias"
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    name = f"{stem.removesuffix('/folded')}/folded"
    layer.replace_input_with(2, add_initializer(layer.graph, name, bias))
    if is_op(layer, "Gemm"):
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _along_weight(layer: ir.Node, weight: Array, scale: Vector) -> npt.NDArray[np.float64]:
    """`scale` shaped so that it multiplies the weight's output channels."""
    if is_op(layer, "Gemm"):
        return scale[:, None] if int_attribute(layer, "transB", 0) else scale[None, :]
    if is_op(layer, "Conv"):
        return scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    # ConvTranspose: W is [in, out / group, ...]; the inputs of one group share its outputs.
    groups = int_attribute(layer, "group", 1)
    per_group = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return per_group.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))


def _bias(layer: ir.Node) -> Vector | None:
    """The bias as [channels] float64 (zeros when absent), or None when it is not constant."""
    value, count = input_at(layer, 2), channels(layer)
    if count is None:
        return None
    if value is None:
        return np.zeros(count)
    array = constant(value)
    if array is None or array.size not in (1, count):
        return None
    if array.ndim == 2 and array.shape[0] != 1:
        return None
    beta = float_attribute(layer, "beta", 1.0) if is_op(layer, "Gemm") else 1.0
    return np.broadcast_to(array.reshape(-1).astype(np.float64) * beta, (count,))


def _representable(array: npt.NDArray[np.float64], dtype: np.dtype[np.generic]) -> bool:
    """False when the fold would overflow the weight's dtype."""
    with np.errstate(over="ignore"):
        return bool(np.all(np.isfinite(array.astype(dtype).astype(np.float64))))
