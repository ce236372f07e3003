"""Operators that reshape a tensor or order its elements anew, and those that make tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import (
    Node,
    Op,
    Operands,
    host_integers,
    need,
    optional,
    present,
)
from ptq.execute.differentiable.tensors import to_tensor, torch_type

PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _reshape(operands: Operands, node: Node) -> Tensor:
    x, shape = need(operands, 0), host_integers(need(operands, 1)) or []
    if not node.integer("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(tuple(shape))


def _transpose(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return x.permute(node.integers("perm", range(x.ndim - 1, -1, -1)))


def _flatten(operands: Operands, node: Node) -> Tensor:
    x, axis = need(operands, 0), node.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(operands: Operands, node: Node) -> list[int] | None:
    """Axes: an operand since opset 13, an attribute before."""
    given = host_integers(optional(operands, 1))
    return given if given is not None else node.integers("axes") or None


def _squeeze(operands: Operands, node: Node) -> Tensor:
    x, axes = need(operands, 0), _axes(operands, node)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(operands: Operands, node: Node) -> Tensor:
    x, axes = need(operands, 0), _axes(operands, node) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    if node.opset < 10:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes: list[int] | None = node.integers("axes") or None
        steps = None
    else:
        starts = host_integers(need(operands, 1)) or []
        ends = host_integers(need(operands, 2)) or []
        axes, steps = (host_integers(optional(operands, i)) for i in (3, 4))
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        x = _slice_axis(x, axis % x.ndim, slice(start, end, step))
    return x


def _slice_axis(x: Tensor, axis: int, cut: slice) -> Tensor:
    """As numpy slices; torch knows no negative steps."""
    start, stop, step = cut.indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, max(stop, start), step),)]
    return x.index_select(axis, torch.arange(start, stop, step, device=x.device))


def _split(operands: Operands, node: Node) -> list[Tensor]:
    x, axis = need(operands, 0), node.integer("axis", 0)
    sizes = host_integers(optional(operands, 1)) or node.integers("split")
    if not sizes:
        count, size = node.integer("num_outputs", node.outputs), x.shape[axis]
        each = -(-size // count)
        sizes = [max(min(each, size - i * each), 0) for i in range(count)]
    return list(x.split(sizes, axis))


def _concat(operands: Operands, node: Node) -> Tensor:
    return torch.cat(present(operands), node.integer("axis", 0))


def _expand(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    shape = host_integers(need(operands, 1)) or []
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _tile(operands: Operands, node: Node) -> Tensor:
    return need(operands, 0).repeat(tuple(host_integers(need(operands, 1)) or ()))


def _pad(operands: Operands, node: Node) -> Tensor:
    x, mode = need(operands, 0), node.text("mode", "constant")
    if node.opset < 11:
        pads, value, axes = node.integers("pads"), node.real("value", 0.0), None
    else:
        pads, fill = host_integers(need(operands, 1)) or [], optional(operands, 2)
        value = 0 if fill is None else fill.item()
        axes = host_integers(optional(operands, 3))
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    pairs = [(axis, pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)]
    if mode == "constant":
        room = [0] * 2 * x.ndim
        for axis, before, after in pairs:
            room[2 * (x.ndim - 1 - axis)], room[2 * (x.ndim - 1 - axis) + 1] = before, after
        return functional.pad(x, room, value=value)
    if mode not in PAD_MODES:
        raise node.refuse(f"mode={mode}", "'constant', 'reflect', 'edge' or 'wrap'")
    for axis, before, after in pairs:
        x = _pad_axis(x, axis, before, after, PAD_MODES[mode])
    return x


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: Any) -> Tensor:
    """Padding that repeats elements: a gather. Negative padding crops first."""
    size = x.shape[axis]
    kept = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    index = np.pad(kept, (max(before, 0), max(after, 0)), mode=mode)
    return x.index_select(axis, torch.from_numpy(index).to(x.device))


def _depth_to_space(operands: Operands, node: Node) -> Tensor:
    x, b = need(operands, 0), node.integer("blocksize", 1)
    n, c, h, w = x.shape
    if node.text("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(operands: Operands, node: Node) -> Tensor:
    x, b = need(operands, 0), node.integer("blocksize", 1)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return y.permute(order).reshape(n, c * b * b, h // b, w // b)


def _shape(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    end = node.attributes.get("end")
    picked = list(x.shape)[node.integer("start", 0) : None if end is None else int(end)]
    return torch.tensor(picked, dtype=torch.int64, device=x.device)


def _size(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def _constant(operands: Operands, node: Node) -> Tensor:
    (name, value), *_ = node.attributes.items()
    if name == "value":
        return to_tensor(value.numpy())
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    raise node.refuse(name, "dense tensors and numbers")


def _constant_of_shape(operands: Operands, node: Node) -> Tensor:
    shape, value = need(operands, 0), node.attributes.get("value")
    fill = torch.zeros(1) if value is None else to_tensor(value.numpy())
    return fill.to(shape.device).reshape(()).expand(tuple(host_integers(shape) or ())).clone()


def _range(operands: Operands, node: Node) -> Tensor:
    start, limit, delta = (need(operands, i) for i in range(3))
    count = math.ceil((limit.item() - start.item()) / delta.item())
    steps = torch.arange(max(count, 0), device=start.device)
    if not start.is_floating_point():
        return (start + steps * delta).to(start.dtype)
    wide = torch.float32 if start.element_size() < 4 else start.dtype
    return (start.to(wide) + steps.to(wide) * delta.to(wide)).to(start.dtype)


def _eye_like(operands: Operands, node: Node) -> Tensor:
    x = need(operands, 0)
    kind = torch_type(int(node.attributes["dtype"])) if "dtype" in node.attributes else x.dtype
    down = torch.arange(x.shape[0], device=x.device)[:, None]
    across = torch.arange(x.shape[1], device=x.device)[None]
    return (across - down == node.integer("k", 0)).to(kind)


def _one_hot(operands: Operands, node: Node) -> Tensor:
    """Indices outside -depth .. depth - 1 give a row of the off value."""
    indices, values = need(operands, 0).to(torch.int64), need(operands, 2)
    depth, axis = int(need(operands, 1).reshape(-1)[0].item()), node.integer("axis", -1)
    indices = torch.where(indices < 0, indices + depth, indices)
    axis = axis % (indices.ndim + 1)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = depth
    hot = indices.unsqueeze(axis) == torch.arange(depth, device=indices.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


def _trilu(operands: Operands, node: Node) -> Tensor:
    x, k = need(operands, 0), optional(operands, 1)
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if node.integer("upper", 1) else x.tril(diagonal)


def _reverse_sequence(operands: Operands, node: Node) -> Tensor:
    x, lengths = need(operands, 0), need(operands, 1)
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)
    x = x.movedim((batch, time), (0, 1))
    step = torch.arange(x.shape[1], device=x.device)[None]
    size = lengths.to(torch.int64)[:, None]
    index = torch.where(step < size, size - 1 - step, step)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, index].movedim((0, 1), (batch, time))


def _center_crop_pad(operands: Operands, node: Node) -> Tensor:
    x, shape = need(operands, 0), host_integers(need(operands, 1)) or []
    for axis, size in zip(node.integers("axes", range(x.ndim)), shape, strict=True):
        axis, extra = axis % x.ndim, size - x.shape[axis]
        room = [0] * 2 * (x.ndim - axis)
        # Of an odd rest, cropping takes the larger half at the end and padding too.
        room[-2] = extra // 2 if extra > 0 else -(-extra // 2)
        room[-1] = extra - room[-2]
        x = functional.pad(x, room)
    return x


SHAPING: dict[str, Op] = {
    "CenterCropPad": _center_crop_pad,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
