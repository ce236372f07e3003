"""Write a linear or cubic Resize as a product with a constant matrix along each resized axis.

Along one axis such a Resize is y = A x with A: [out, in], at most two or four numbers a row:

    linear    A[i, floor(u)] += 1 - frac(u),   A[i, floor(u) + 1] += frac(u)
    cubic     A[i, floor(u) + k] += w(|frac(u) - k|) for k of -1, 0, 1, 2,
              w(d) = (a + 2) d^3 - (a + 3) d^2 + 1 for d <= 1, else a (d^3 - 5 d^2 + 8 d - 4)

where u = u(i) is ONNX's coordinate transformation, clamped to [0, in - 1] if linear, and places
outside are those of the edge. Axes are independent, so

    Resize(x) = ... Transpose(MatMul(Transpose(MatMul(x, A_w')), A_h')) ...

and an integer matrix product can run it.

Left alone: other modes, antialias, tf_crop_and_resize, keep_aspect_ratio policies,
unknown sizes along a resized axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    constant,
    dim,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    new_node,
    rank,
    replace,
    string_attribute,
)

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interpolation:
    """mode: linear or cubic. a: of cubic. inside: weights of places outside are left out."""

    mode: str = "linear"
    coordinates: str = "half_pixel"
    a: float = -0.75
    inside: bool = False


def write_resize_as_matmul(graph: ir.Graph) -> int:
    """Rewrite every such Resize of `graph` that allows it; returns how many."""
    return sum(_rewrite(graph, node) for node in graph if is_op(node, "Resize"))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.dtype is None or not _is_plain(node):
        return False
    scales = _scales(node)
    if scales is None:
        return False
    matrices = _matrices(node, scales)
    if not matrices:
        return False
    chain: list[ir.Node] = []
    value = source
    for axis, matrix in reversed(matrices.items()):
        array = matrix.T.astype(source.dtype.numpy())
        name = f"{node.outputs[0].name}/interpolate_{axis}"
        chain += _along_axis(value, axis, add_initializer(graph, name, array))
        value = chain[-1].outputs[0]
    replace(node, chain)
    return True


def _is_plain(node: ir.Node) -> bool:
    return (
        string_attribute(node, "mode", "nearest") in _TAPS
        and string_attribute(node, "coordinate_transformation_mode", "half_pixel") in _COORDINATES
        and string_attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        and not int_attribute(node, "antialias", 0)
    )


def _scales(node: ir.Node) -> dict[int, tuple[int, int, float]] | None:
    """axis -> (in, out, scale) of every axis that the node names, or None when one is unknown."""
    source = node.inputs[0]
    count = rank(source)
    if source is None or count is None:
        return None
    axes = [a % count for a in ints_attribute(node, "axes") or range(count)]
    scales, sizes = constant(input_at(node, 2)), constant(input_at(node, 3))
    found: dict[int, tuple[int, int, float]] = {}
    for position, axis in enumerate(axes):
        before = dim(source, axis)
        if scales is not None and scales.size == len(axes):
            scale = float(scales.reshape(-1)[position])
            if scale == 1:
                continue
            after = None if before is None else int(np.floor(before * scale))
        elif sizes is not None and sizes.size == len(axes):
            after = int(sizes.reshape(-1)[position])
            scale = after / before if before else 1.0
        else:
            return None
        if not before or not after:
            return None
        found[axis] = (before, after, scale)
    return found


def _matrices(node: ir.Node, scales: dict[int, tuple[int, int, float]]) -> dict[int, Vector]:
    how = Interpolation(
        string_attribute(node, "mode", "nearest"),
        string_attribute(node, "coordinate_transformation_mode", "half_pixel"),
        float_attribute(node, "cubic_coeff_a", -0.75),
        bool(int_attribute(node, "exclude_outside", 0)),
    )
    matrices = {}
    for axis, (before, after, scale) in sorted(scales.items()):
        matrix = interpolation_matrix(before, after, scale, how)
        if before != after or not np.array_equal(matrix, np.eye(before)):
            matrices[axis] = matrix
    return matrices


def _linear(places: Vector, before: int, a: float) -> tuple[Places, Vector]:
    clamped = np.clip(places, 0, before - 1)
    low = np.floor(clamped).astype(np.int64)
    fraction = clamped - low
    return low[:, None] + np.arange(2), np.stack([1 - fraction, fraction], axis=1)


def _cubic(places: Vector, before: int, a: float) -> tuple[Places, Vector]:
    low = np.floor(places).astype(np.int64)
    steps = np.arange(-1, 3)
    d = np.abs((places - low)[:, None] - steps)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return low[:, None] + steps, np.where(d <= 1, near, far)


_TAPS: dict[str, Callable[[Vector, int, float], tuple[Places, Vector]]] = {
    "linear": _linear,
    "cubic": _cubic,
}
"""Places u [out], in, a -> where each output reads [out, taps], and its weights [out, taps]."""


def interpolation_matrix(before: int, after: int, scale: float, how: Interpolation) -> Vector:
    """A: [after, before] float64, rows sum to 1."""
    places = _COORDINATES[how.coordinates](np.arange(after, dtype=np.float64), before, after, scale)
    taps, weights = _TAPS[how.mode](places, before, how.a)
    if how.inside:
        weights = np.where((taps >= 0) & (taps < before), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(taps), before))
    rows = np.broadcast_to(np.arange(len(taps))[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, before - 1)), weights)
    return matrix


def _along_axis(value: ir.Value, axis: int, matrix: ir.Value) -> list[ir.Node]:
    """Transpose `axis` to the end, multiply, transpose back: new nodes with shapes."""
    count = rank(value) or 0
    shape = list(value.shape or ())
    order = list(range(count))
    order[axis], order[-1] = order[-1], order[axis]
    columns = dim(matrix, 1) or 0
    swapped = [shape[i] for i in order]
    multiplied = [*swapped[:-1], columns]
    if axis == count - 1:
        return [new_node("MatMul", [value, matrix], like=value, shape=multiplied)]
    there = new_node("Transpose", [value], {"perm": order}, like=value, shape=swapped)
    inputs = [there.outputs[0], matrix]
    product = new_node("MatMul", inputs, like=value, shape=multiplied)
    back = [multiplied[i] for i in order]
    return [
        there,
        product,
        new_node("Transpose", product.outputs, {"perm": order}, like=value, shape=back),
    ]


def _half_pixel(i: Vector, before: int, after: int, scale: float) -> Vector:
    return (i + 0.5) / scale - 0.5


def _half_pixel_symmetric(i: Vector, before: int, after: int, scale: float) -> Vector:
    adjustment = after / (scale * before)
    return before / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5


def _pytorch_half_pixel(i: Vector, before: int, after: int, scale: float) -> Vector:
    return (i + 0.5) / scale - 0.5 if after > 1 else np.zeros_like(i)


def _align_corners(i: Vector, before: int, after: int, scale: float) -> Vector:
    return i * ((before - 1) / (after - 1)) if after > 1 else np.zeros_like(i)


def _asymmetric(i: Vector, before: int, after: int, scale: float) -> Vector:
    return i / scale


_COORDINATES: dict[str, Callable[[Vector, int, int, float], Vector]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
}
"""u(i) of ONNX's Resize, by the name of its coordinate_transformation_mode."""
