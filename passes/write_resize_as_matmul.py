"""Write a linear Resize as a product with a constant interpolation matrix along each resized axis.

Along one axis a linear Resize is y = A x with A: [out, in], at most two numbers a row:

    A[i, floor(u)] += 1 - frac(u),   A[i, floor(u) + 1] += frac(u)

where u = u(i) clamped to [0, in - 1], and u(i) is ONNX's coordinate transformation. Axes are
independent, so

    Resize(x) = ... Transpose(MatMul(Transpose(MatMul(x, A_w')), A_h')) ...

and an integer matrix product can run it.

Left alone: other modes, antialias, exclude_outside, tf_crop_and_resize, keep_aspect_ratio policies,
unknown sizes along a resized axis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    constant,
    dim,
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


def write_resize_as_matmul(graph: ir.Graph) -> int:
    """Rewrite every linear Resize of `graph` that allows it; returns how many."""
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
        string_attribute(node, "mode", "nearest") == "linear"
        and string_attribute(node, "coordinate_transformation_mode", "half_pixel") in _COORDINATES
        and string_attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        and not int_attribute(node, "antialias", 0)
        and not int_attribute(node, "exclude_outside", 0)
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
    mode = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    matrices = {}
    for axis, (before, after, scale) in sorted(scales.items()):
        matrix = interpolation_matrix(before, after, scale, mode)
        if before != after or not np.array_equal(matrix, np.eye(before)):
            matrices[axis] = matrix
    return matrices


def interpolation_matrix(before: int, after: int, scale: float, mode: str) -> Vector:
    """A: [after, before] float64, rows sum to 1."""
    places = _COORDINATES[mode](np.arange(after, dtype=np.float64), before, after, scale)
    clamped = np.clip(places, 0, before - 1)
    low = np.floor(clamped).astype(np.int64)
    high = np.minimum(low + 1, before - 1)
    fraction = clamped - low
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    np.add.at(matrix, (rows, low), 1 - fraction)
    np.add.at(matrix, (rows, high), fraction)
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
