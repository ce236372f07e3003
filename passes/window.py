"""The geometry of a sliding window (convolution, pooling) along its spatial axes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes.rewriting import dim, ints_attribute, rank, string_attribute


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a window: sizes in elements."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    @property
    def reach(self) -> int:
        """The extent of the dilated kernel."""
        return (self.kernel - 1) * self.dilation + 1


def axes_of(node: ir.Node) -> list[Axis] | None:
    """The window of `node`, automatic padding resolved; None where that needs unknown sizes."""
    kernel = ints_attribute(node, "kernel_shape") or _weight_kernel(node)
    if kernel is None:
        return None
    count = len(kernel)
    strides = ints_attribute(node, "strides") or (1,) * count
    dilations = ints_attribute(node, "dilations") or (1,) * count
    pads = ints_attribute(node, "pads") or (0,) * (2 * count)
    automatic = string_attribute(node, "auto_pad", "NOTSET")
    if automatic == "VALID":
        pads = (0,) * (2 * count)
    axes = [
        Axis(kernel[i], strides[i], dilations[i], pads[i], pads[count + i]) for i in range(count)
    ]
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return axes
    return _same_padding(node, axes, automatic)


def spatial_sizes(value: ir.Value | None) -> list[int] | None:
    """The sizes after batch and channels, or None unless all of them are known."""
    count = rank(value)
    if value is None or count is None:
        return None
    sizes = [dim(value, axis) for axis in range(2, count)]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _weight_kernel(node: ir.Node) -> tuple[int, ...] | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or len(weight.shape) < 3:
        return None
    sizes = [size for size in list(weight.shape)[2:] if isinstance(size, int)]
    return tuple(sizes) if len(sizes) == len(weight.shape) - 2 else None


def _same_padding(node: ir.Node, axes: list[Axis], automatic: str) -> list[Axis] | None:
    """ONNX: out = ceil(in / stride), the odd zero at the end (UPPER) or at the begin (LOWER)."""
    sizes = spatial_sizes(node.inputs[0])
    if sizes is None or len(sizes) != len(axes):
        return None
    resolved = []
    for size, axis in zip(sizes, axes, strict=True):
        outputs = -(-size // axis.stride)
        total = (outputs - 1) * axis.stride + axis.reach - size
        if total < 0:  # a stride beyond the kernel: runtimes disagree about what SAME means
            return None
        small, large = total // 2, total - total // 2
        begin, end = (small, large) if automatic == "SAME_UPPER" else (large, small)
        resolved.append(Axis(axis.kernel, axis.stride, axis.dilation, begin, end))
    return resolved
