"""Resize and the sampling operators.

Every mode of Resize is separable: one [out, in] matrix an axis. Row y of it holds the filter
around the source coordinate x(y), with the taps that fall outside moved to the border.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, host_integers, need, optional

Floats = npt.NDArray[np.float64]
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
MODES = ("nearest", "linear", "cubic")


@dataclass(frozen=True)
class AxisResize:
    """How one axis is resized; `roi` is (start, end) in fractions of the input."""

    size: int
    output: int
    scale: float
    mode: str
    coordinates: str
    nearest: str = NEAREST[0]
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    roi: tuple[float, float] | None = None


def source_coordinates(a: AxisResize) -> Floats:
    """x(y) for every output position: [output] float64.

    The order of operations is that of onnx's reference: ties of nearest depend on the last bit.
    """
    y, length = np.arange(a.output, dtype=np.float64), a.scale * a.size
    if a.coordinates == "align_corners":
        return y * 0 if length == 1 else y * (a.size - 1) / (length - 1)
    if a.coordinates == "asymmetric":
        return y / a.scale
    if a.coordinates == "pytorch_half_pixel" and length == 1:
        return y * 0 - 0.5
    if a.coordinates == "half_pixel_symmetric":
        return a.size / 2 * (1 - a.output / length) + (y + 0.5) / a.scale - 0.5
    if a.coordinates == "tf_crop_and_resize" and a.roi is not None:
        start, end = a.roi
        if length == 1:
            return y * 0 + (end - start) * (a.size - 1) / 2 + start * (a.size - 1)
        return y * (end - start) * (a.size - 1) / (length - 1) + start * (a.size - 1)
    return (y + 0.5) / a.scale - 0.5


@functools.lru_cache(maxsize=256)
def resize_matrix(a: AxisResize) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Weights [output, size] float64, and which outputs lie outside the region: [output] bool."""
    x = source_coordinates(a)
    ratio = x - (np.ceil(x) - 1)  # distance from the tap before x; 1 where x is a tap
    squeeze = min(a.scale, 1.0) if a.antialias else 1.0
    reach = {"nearest": 1, "linear": 1, "cubic": 2}[a.mode]
    half = -int(np.floor(-reach / squeeze))
    taps = np.arange(1 - half, half + 1)
    weights = FILTERS[a.mode](squeeze * (taps - ratio[:, None]), ratio[:, None], a)
    # onnx's reference finds the taps after adding the border: an x one bit off an integer is one.
    left = np.ceil(x + half) - half - 1
    place = left[:, None].astype(np.int64) + taps
    if a.exclude_outside:
        weights = np.where((place < 0) | (place >= a.size), 0.0, weights)
    total = weights.sum(1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    matrix = np.zeros((a.output, a.size))
    rows = np.arange(a.output)[:, None].repeat(len(taps), 1)
    np.add.at(matrix, (rows, place.clip(0, a.size - 1)), weights)
    outside = (x < 0) | (x > a.size - 1)
    return matrix, outside & (a.coordinates == "tf_crop_and_resize")


def _nearest_filter(distance: Floats, ratio: Floats, a: AxisResize) -> Floats:
    """Two taps, one of which is taken."""
    right = {
        "round_prefer_floor": ratio > 0.5,
        "round_prefer_ceil": ratio >= 0.5,
        "floor": ratio == 1,
        "ceil": ratio > 0,
    }[a.nearest]
    return np.asarray(np.concatenate([~right, right], axis=1), np.float64)


def _linear_filter(distance: Floats, ratio: Floats, a: AxisResize) -> Floats:
    return np.asarray(np.clip(1 - np.abs(distance), 0, 1))


def _cubic_filter(distance: Floats, ratio: Floats, a: AxisResize) -> Floats:
    """Keys' kernel with parameter a.cubic."""
    d, k = np.abs(distance), a.cubic
    near = ((k + 2) * d - (k + 3)) * d * d + 1
    far = ((k * d - 5 * k) * d + 8 * k) * d - 4 * k
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


FILTERS = {"nearest": _nearest_filter, "linear": _linear_filter, "cubic": _cubic_filter}


def _resize(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    mode = node.text("mode", "nearest")
    if mode not in MODES or (mode == "nearest" and node.integer("antialias", 0)):
        raise node.refuse(f"mode={mode}", "nearest, linear or cubic; antialias not with nearest")
    for axis, a in _axis_resizes(operands, node, x, mode):
        x = _resize_axis(x, axis, a, node.real("extrapolation_value", 0.0))
    return x


def _resize_axis(x: Tensor, axis: int, a: AxisResize, fill: float) -> Tensor:
    matrix, outside = resize_matrix(a)
    if a.mode == "nearest":
        picked = torch.from_numpy(matrix.argmax(1)).to(x.device)
        y = x.index_select(axis, picked)
    else:
        kind = x.dtype if x.is_floating_point() else torch.float64
        weights = torch.from_numpy(matrix).to(x.device, kind)
        y = torch.matmul(x.to(kind).movedim(axis, -1), weights.T).movedim(-1, axis).to(x.dtype)
    if not outside.any():
        return y
    shape = [1] * y.ndim
    shape[axis] = -1
    mask = torch.from_numpy(outside).to(x.device).reshape(shape)
    return torch.where(mask, torch.tensor(fill, dtype=y.dtype, device=y.device), y)


def _axis_resizes(
    operands: Operands, node: Node, x: Tensor, mode: str
) -> list[tuple[int, AxisResize]]:
    """The axes that change, and how. Opset 10 had no coordinate modes and no sizes."""
    old = node.opset < 11
    roi = None if old else optional(operands, 1)
    scales_at = optional(operands, 1 if old else 2)
    sizes = host_integers(None if old else optional(operands, 3))
    axes = [axis % x.ndim for axis in node.integers("axes", range(x.ndim))]
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    shape = [x.shape[axis] for axis in axes]
    if scales_at is not None and scales_at.numel():
        scales = [float(s) for s in scales_at.tolist()]
        outputs = [int(s * size) for s, size in zip(scales, shape, strict=True)]
    elif sizes is None:
        raise node.refuse("neither scales nor sizes", "one of them as an operand (opset 9)")
    else:
        scales, outputs = _fit(sizes, shape, policy)
    regions = [float(v) for v in roi.tolist()] if roi is not None and roi.numel() else None
    coordinates = node.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    found = []
    for i, axis in enumerate(axes):
        region = None if regions is None else (regions[i], regions[i + len(axes)])
        if scales[i] == 1.0 and outputs[i] == shape[i] and region in (None, (0.0, 1.0)):
            continue
        found.append((axis, AxisResize(
            shape[i], outputs[i], scales[i], mode, coordinates,
            node.text("nearest_mode", "floor" if old else NEAREST[0]),
            node.real("cubic_coeff_a", -0.75), bool(node.integer("antialias", 0)),
            bool(node.integer("exclude_outside", 0)), region,
        )))  # fmt: skip
    return found


def _fit(sizes: list[int], shape: list[int], policy: str) -> tuple[list[float], list[int]]:
    """Scales from wanted sizes, under the aspect ratio policy."""
    scales = [want / size for want, size in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return scales, sizes
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [scale] * len(shape), [int(scale * size + 0.5) for size in shape]


GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(operands: Operands, node: Node) -> Tensor:
    x, grid = need(operands, 0), need(operands, 1)
    mode = node.text("mode", "linear")
    mode = GRID_MODES.get(mode, mode)
    if x.ndim not in (4, 5) or (x.ndim == 5 and mode == "bicubic"):
        raise node.refuse(f"mode={mode} of {x.ndim - 2} axes", "2 axes, or 3 if not cubic")
    padding, corners = node.text("padding_mode", "zeros"), bool(node.integer("align_corners", 0))
    return functional.grid_sample(x, grid, mode, padding, corners)


def _affine_grid(operands: Operands, node: Node) -> Tensor:
    size = host_integers(need(operands, 1)) or []
    corners = bool(node.integer("align_corners", 0))
    return functional.affine_grid(need(operands, 0), size, corners)


RESIZING: dict[str, Op] = {
    "AffineGrid": _affine_grid,
    "GridSample": _grid_sample,
    "Resize": _resize,
    "Upsample": _resize,
}
