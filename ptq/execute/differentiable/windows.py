"""Padding and output sizes of sliding windows: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptq.execute.differentiable.nodes import Node


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes; all lists have one entry an axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def extent(self) -> list[int]:
        """How far the window reaches, holes included."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def room(self) -> list[int]:
        """The padding as torch.nn.functional.pad wants it: last axis first."""
        pairs = zip(reversed(self.before), reversed(self.after), strict=True)
        return [side for pair in pairs for side in pair]


def window(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over spatial `sizes`, with `auto_pad` resolved.

    Raises:
        UnsupportedModelError: an auto_pad that ONNX does not know.
    """
    n = len(sizes)
    strides, dilations = node.integers("strides", [1] * n), node.integers("dilations", [1] * n)
    auto, pads = node.text("auto_pad", "NOTSET"), node.integers("pads", [0] * 2 * n)
    if auto in ("NOTSET", ""):
        return Window(list(kernel), strides, dilations, pads[:n], pads[n:])
    plain = Window(list(kernel), strides, dilations, [0] * n, [0] * n)
    if auto == "VALID":
        return plain
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"auto_pad={auto}", "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    total = [
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, stride, extent in zip(sizes, strides, plain.extent, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(list(kernel), strides, dilations, before, after)
