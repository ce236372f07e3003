"""Write average pools in the two forms that integer targets have.

1. a window over the whole input without padding: GlobalAveragePool;
2. count_include_pad = 0 with padding divides by a number that varies along the border. So count the
   padding, and correct with a constant mask:

    AveragePool(x, count_include_pad=0) = AveragePool(x, count_include_pad=1) * mask
    mask[i, j] = kernel area / number of kernel positions inside x

Left alone: unknown spatial sizes for either rule, and for rule 2 ceil_mode or a window that lies in
the padding altogether.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import (
    Attributes,
    add_initializer,
    int_attribute,
    is_op,
    new_node,
    replace,
)
from ptq.passes.window import Axis, axes_of, spatial_sizes


def mask_average_pool(graph: ir.Graph) -> int:
    """Rewrite every AveragePool of `graph` that one of the rules fits; returns how many."""
    return sum(_rewrite(graph, node) for node in graph if is_op(node, "AveragePool"))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    sizes, axes = spatial_sizes(node.inputs[0]), axes_of(node)
    if sizes is None or axes is None or len(sizes) != len(axes):
        return False
    if all(
        axis.kernel == size and axis.dilation == 1 and not axis.begin and not axis.end
        for size, axis in zip(sizes, axes, strict=True)
    ):
        replace(node, [new_node("GlobalAveragePool", node.inputs[:1])])
        return True
    padded = any(axis.begin or axis.end for axis in axes)
    if not padded or int_attribute(node, "count_include_pad", 0):
        return False
    if int_attribute(node, "ceil_mode", 0):
        return False
    return _mask(graph, node, [_inside(s, a) for s, a in zip(sizes, axes, strict=True)], axes)


def _mask(
    graph: ir.Graph, node: ir.Node, inside: list[npt.NDArray[np.int64]], axes: list[Axis]
) -> bool:
    source = node.inputs[0]
    if source is None or source.dtype is None or any(np.any(counts < 1) for counts in inside):
        return False
    mask = np.ones((1, 1, *(counts.size for counts in inside)))
    for position, (counts, axis) in enumerate(zip(inside, axes, strict=True)):
        shape = [1] * mask.ndim
        shape[2 + position] = counts.size
        mask = mask * (axis.kernel / counts).reshape(shape)
    stem = node.outputs[0].name
    constant = add_initializer(graph, f"{stem}/mask", mask.astype(source.dtype.numpy()))
    pool = new_node("AveragePool", [source], _attributes(axes), like=source)
    pool.outputs[0].shape = node.outputs[0].shape
    replace(node, [pool, new_node("Mul", [pool.outputs[0], constant])])
    return True


def _attributes(axes: list[Axis]) -> Attributes:
    return {
        "kernel_shape": [axis.kernel for axis in axes],
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
        "count_include_pad": 1,
    }


def _inside(size: int, axis: Axis) -> npt.NDArray[np.int64]:
    """How many kernel positions of each window lie in the input: [outputs] int64."""
    outputs = (size + axis.begin + axis.end - axis.reach) // axis.stride + 1
    starts = np.arange(outputs) * axis.stride - axis.begin
    positions = starts[:, None] + np.arange(axis.kernel) * axis.dilation
    return np.asarray(np.sum((positions >= 0) & (positions < size), axis=1), np.int64)
