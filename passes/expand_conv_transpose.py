"""Write a transposed convolution as a convolution followed by a shuffle of channels into space.

Along one axis, with stride s, dilation d, kernel K and begin padding p:

    y[o] = sum over i, k with i s + k d = o + p  of  x[i] W[k]

Let o + p = s q + r with the phase r in 0..s-1. The taps of phase r are the k with k d = r (mod s);
with m = (k d - r) / s >= 0 they read x[q - m]. So phase r of the output is an ordinary convolution
of x with the kernel V_r[M - 1 - m] = W[k], M = (K - 1) d // s + 1, and the s phases interleave:

    y = Crop(DepthToSpace(Conv(x, V)))       V: [out s1 s2, in / group, M1, M2]

No zero is inserted into x: this is the sub-pixel convolution of Shi et al.,
https://arxiv.org/abs/1609.05158. Equal strides in 2-D use DepthToSpace; others Reshape, Transpose,
Reshape, which needs known spatial sizes. Exact up to the order of float additions.

Left alone: weights that are not constant, unknown sizes where output_shape or SAME_* needs them,
negative padding.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    Array,
    Attributes,
    add_initializer,
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    new_node,
    replace,
    string_attribute,
)
from ptq.passes.window import spatial_sizes

_TO_THE_END = 2**63 - 1


@dataclass(frozen=True)
class Phase:
    """One spatial axis: the convolution's own geometry, and what is cropped afterwards.

    `taps` is M; `left`, `right` pad the convolution; `crop_begin`, `crop_end` cut the interleaved
    result.
    """

    kernel: int
    stride: int
    dilation: int
    taps: int
    left: int
    right: int
    crop_begin: int
    crop_end: int


def expand_conv_transpose(graph: ir.Graph) -> int:
    """Rewrite every ConvTranspose of `graph` that allows it; returns how many."""
    return sum(_expand(graph, node) for node in graph if is_op(node, "ConvTranspose"))


def _expand(graph: ir.Graph, node: ir.Node) -> bool:
    source, weight, bias = node.inputs[0], constant(node.inputs[1]), constant(input_at(node, 2))
    if source is None or weight is None or (input_at(node, 2) is not None and bias is None):
        return False
    axes = _phases(node, weight.shape[2:])
    sizes = spatial_sizes(source)
    if axes is None or (sizes is None and not _is_square(axes)):
        return False
    groups = int_attribute(node, "group", 1)
    phases = math.prod(axis.stride for axis in axes)
    stem = node.outputs[0].name or "conv_transpose"
    inputs = [source, add_initializer(graph, f"{stem}/weight", _weights(weight, groups, axes))]
    if bias is not None:
        inputs.append(add_initializer(graph, f"{stem}/bias", np.repeat(bias, phases)))
    conv = new_node("Conv", inputs, _conv_attributes(axes, groups), like=source)
    channels = weight.shape[1] * groups
    _describe(source, conv.outputs[0], channels * phases, axes)
    chain = [conv, *_interleave(graph, conv.outputs[0], (stem, channels), axes, sizes)]
    chain += _crop(graph, chain[-1].outputs[0], stem, axes)
    replace(node, chain)
    return True


def _phases(node: ir.Node, kernel: tuple[int, ...]) -> list[Phase] | None:
    count = len(kernel)
    strides = ints_attribute(node, "strides") or (1,) * count
    dilations = ints_attribute(node, "dilations") or (1,) * count
    extra = ints_attribute(node, "output_padding") or (0,) * count
    pads = _pads(node, kernel, strides, dilations, extra)
    if pads is None or any(p < 0 for pair in pads for p in pair):
        return None
    return [_phase(kernel[i], strides[i], dilations[i], pads[i], extra[i]) for i in range(count)]


def _phase(kernel: int, stride: int, dilation: int, pads: tuple[int, int], extra: int) -> Phase:
    """The geometry of one axis; the input's size n cancels out of everything but the output's."""
    begin, end = pads
    reach = (kernel - 1) * dilation + 1
    taps = (kernel - 1) * dilation // stride + 1
    skipped = min(begin // stride, taps - 1)
    left = taps - 1 - skipped
    # Outputs of the convolution beyond n: enough for (n - 1) s + reach + extra - end, less q0.
    needed = -(-(reach + extra - end) // stride) - 1
    right = max(0, needed)
    crop_begin = begin - stride * skipped
    # Interleaved: s (n + left + right - taps + 1) = s (n + right - skipped); wanted: crop_begin +
    # (n - 1) s + reach + extra - begin - end.
    crop_end = stride * (right - skipped + 1) - crop_begin - (reach + extra - begin - end)
    return Phase(kernel, stride, dilation, taps, left, right, crop_begin, crop_end)


def _pads(
    node: ir.Node,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    extra: tuple[int, ...],
) -> list[tuple[int, int]] | None:
    """(begin, end) per axis; output_shape and SAME_* are turned into pads as ONNX defines."""
    count, wanted = len(kernel), ints_attribute(node, "output_shape")
    automatic = string_attribute(node, "auto_pad", "NOTSET")
    same = automatic in ("SAME_UPPER", "SAME_LOWER")
    if not wanted and not same:
        pads = ints_attribute(node, "pads") if automatic == "NOTSET" else None
        pads = pads or (0,) * (2 * count)
        return [(pads[i], pads[count + i]) for i in range(count)]
    sizes = spatial_sizes(node.inputs[0])
    if sizes is None:
        return None
    wanted = tuple(wanted[-count:]) if wanted else None
    result = []
    for i, size in enumerate(sizes):
        target = wanted[i] if wanted else size * strides[i]
        reach = (kernel[i] - 1) * dilations[i] + 1
        total = strides[i] * (size - 1) + extra[i] + reach - target
        if total < 0:
            return None
        small, large = total // 2, total - total // 2
        result.append((small, large) if automatic == "SAME_UPPER" else (large, small))
    return result


def _weights(weight: Array, groups: int, axes: list[Phase]) -> Array:
    """[in, out / group, K...] -> [out * phases, in / group, M...], phases innermost."""
    inputs, per_group = weight.shape[0] // groups, weight.shape[1]
    strides = [axis.stride for axis in axes]
    grouped = weight.reshape(groups, inputs, per_group, *weight.shape[2:])
    swapped = grouped.swapaxes(1, 2)  # [group, out / group, in / group, K...]
    shape = (groups, per_group, *strides, inputs, *(axis.taps for axis in axes))
    result = np.zeros(shape, weight.dtype)
    for tap in itertools.product(*(range(axis.kernel) for axis in axes)):
        reached = [k * axis.dilation for k, axis in zip(tap, axes, strict=True)]
        phase = tuple(r % axis.stride for r, axis in zip(reached, axes, strict=True))
        place = tuple(
            axis.taps - 1 - r // axis.stride for r, axis in zip(reached, axes, strict=True)
        )
        everything = slice(None)
        target: tuple[Any, ...] = (everything, everything, *phase, everything, *place)
        source: tuple[Any, ...] = (..., *tap)
        result[target] = swapped[source]
    return result.reshape(-1, inputs, *(axis.taps for axis in axes))


def _conv_attributes(axes: list[Phase], groups: int) -> Attributes:
    return {
        "kernel_shape": [axis.taps for axis in axes],
        "strides": [1] * len(axes),
        "dilations": [1] * len(axes),
        "pads": [axis.left for axis in axes] + [axis.right for axis in axes],
        "group": groups,
    }


def _is_square(axes: list[Phase]) -> bool:
    """True when DepthToSpace, or nothing at all, interleaves the phases."""
    strides = {axis.stride for axis in axes}
    return strides == {1} or (len(axes) == 2 and len(strides) == 1)


def _interleave(
    graph: ir.Graph,
    value: ir.Value,
    target: tuple[str, int],
    axes: list[Phase],
    sizes: list[int] | None,
) -> list[ir.Node]:
    """Phases from channels into space; `target` is the result's name and number of channels."""
    name, channels = target
    strides = [axis.stride for axis in axes]
    if set(strides) == {1}:
        return []
    if _is_square(axes):
        attributes: Attributes = {
            "blocksize": strides[0],
            "mode": "CRD",
        }
        return [new_node("DepthToSpace", [value], attributes, like=value)]
    if sizes is None:
        raise ValueError("unequal strides need known sizes")
    count = len(axes)
    grown = [s + a.left + a.right - a.taps + 1 for s, a in zip(sizes, axes, strict=True)]
    apart = np.array([0, channels, *strides, *grown], np.int64)
    joined = np.array(
        [0, channels, *(g * s for g, s in zip(grown, strides, strict=True))], np.int64
    )
    # [N, C, s1, s2, H, W] -> [N, C, H, s1, W, s2]
    order = [0, 1, *(axis for i in range(count) for axis in (2 + count + i, 2 + i))]
    first = new_node("Reshape", [value, add_initializer(graph, f"{name}/apart", apart)], like=value)
    second = new_node("Transpose", [first.outputs[0]], {"perm": order}, like=value)
    inputs = [second.outputs[0], add_initializer(graph, f"{name}/joined", joined)]
    return [first, second, new_node("Reshape", inputs, like=value)]


def _crop(graph: ir.Graph, value: ir.Value, name: str, axes: list[Phase]) -> list[ir.Node]:
    cut = [(2 + i, a) for i, a in enumerate(axes) if a.crop_begin or a.crop_end]
    if not cut:
        return []
    bounds = {
        "starts": [axis.crop_begin for _, axis in cut],
        "ends": [-axis.crop_end if axis.crop_end else _TO_THE_END for _, axis in cut],
        "axes": [position for position, _ in cut],
    }
    inputs = [
        add_initializer(graph, f"{name}/{key}", np.array(numbers, np.int64))
        for key, numbers in bounds.items()
    ]
    return [new_node("Slice", [value, *inputs], like=value)]


def _describe(source: ir.Value, output: ir.Value, channels: int, axes: list[Phase]) -> None:
    """Give the convolution's output its shape, as far as the source's is known."""
    if source.shape is None:
        return
    grown = [
        size + axis.left + axis.right - axis.taps + 1 if isinstance(size, int) else None
        for size, axis in zip(list(source.shape)[2:], axes, strict=True)
    ]
    output.shape = ir.Shape([source.shape[0], channels, *grown])
