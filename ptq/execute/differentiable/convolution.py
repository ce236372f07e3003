"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.nodes import Node, Op, Operands, need, optional, present
from ptq.execute.differentiable.windows import window


def _convolve_2d(x: Tensor, *rest: Any) -> Tensor:
    """With channels last in memory, where CPUs take gradients two to three times as fast."""
    return functional.conv2d(x.contiguous(memory_format=torch.channels_last), *rest)


CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: _convolve_2d,
    3: functional.conv3d,
}
TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _rank(weight: Tensor, node: Node) -> int:
    rank = weight.ndim - 2
    if rank not in CONVOLVE:
        raise node.refuse(f"{rank} spatial axes", "1 to 3")
    return rank


def _conv(operands: Operands, node: Node) -> Tensor:
    x, weight, bias = need(operands, 0), need(operands, 1), optional(operands, 2)
    rank = _rank(weight, node)
    w = window(node, x.shape[2:], weight.shape[2:])
    padding: list[int] = w.before
    if w.before != w.after or min(w.before) < 0:
        x, padding = functional.pad(x, w.room), [0] * rank
    group = node.integer("group", 1)
    return CONVOLVE[rank](x, weight, bias, w.strides, padding, w.dilations, group)


def _conv_transpose(operands: Operands, node: Node) -> Tensor:
    """The full transposed convolution, cropped by the pads; output_padding adds at the end."""
    x, weight, bias = need(operands, 0), need(operands, 1), optional(operands, 2)
    rank = _rank(weight, node)
    strides = node.integers("strides", [1] * rank)
    dilations, group = node.integers("dilations", [1] * rank), node.integer("group", 1)
    y = TRANSPOSED[rank](x, weight, None, strides, 0, 0, group, dilations)
    extra = node.integers("output_padding", [0] * rank)
    before, after = _crop(node, x, y, strides, extra)
    sides = zip(reversed(before), reversed(after), reversed(extra), strict=True)
    y = functional.pad(y, [s for b, a, e in sides for s in (-b, e - a)])
    return y if bias is None else y + bias.reshape(1, -1, *[1] * rank)


def _crop(
    node: Node, x: Tensor, full: Tensor, strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """What is cut off at the beginning and the end of each spatial axis."""
    rank, auto = len(strides), node.text("auto_pad", "NOTSET")
    wanted = node.integers("output_shape")
    if not wanted and auto.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if not wanted:
        pads = node.integers("pads", [0] * 2 * rank) if auto != "VALID" else [0] * 2 * rank
        return pads[:rank], pads[rank:]
    total = [
        size + e - want for size, e, want in zip(full.shape[2:], extra, wanted[-rank:], strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _gemm(operands: Operands, node: Node) -> Tensor:
    a, b, c = need(operands, 0), need(operands, 1), optional(operands, 2)
    a = a.T if node.integer("transA", 0) else a
    b = b.T if node.integer("transB", 0) else b
    y = torch.matmul(a, b)
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    y = y if alpha == 1 else (y * alpha).to(y.dtype)
    return y if c is None else y + (c if beta == 1 else (c * beta).to(c.dtype))


def _matmul(operands: Operands, node: Node) -> Tensor:
    return torch.matmul(need(operands, 0), need(operands, 1))


def _einsum(operands: Operands, node: Node) -> Tensor:
    return torch.einsum(node.text("equation", ""), *present(operands))


def _det(operands: Operands, node: Node) -> Tensor:
    determinant: Tensor = torch.linalg.det(need(operands, 0))
    return determinant


CONVOLUTION: dict[str, Op] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Det": _det,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
