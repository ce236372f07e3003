"""Images that are written with a frame of their zero point, as the next convolution reads them.

So no convolution copies its input for its padding: the kernel that makes a tensor writes inside
the frame, a small one fills the frame, and every other reader has strides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptq.integer.flow import reads, writes
from ptq.integer.program import Apply, Convolve, Gemm, MatMul, Program, Step
from ptq.kernels.kernel import strides_of
from ptq.kernels.movement import Border
from ptq.kernels.view import View

DENSE_ROWS = 10
"""Below so many pixels a row, products of single pixels want to walk rows as one: a tile would
hardly be filled, which costs more than the copy that a frame saves."""


@dataclass(frozen=True)
class Frame:
    """Rows and pixels around an image."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    @staticmethod
    def of(step: Convolve) -> Frame:
        """What a convolution over one or two axes reads beyond its input."""
        before, after = step.pads[: len(step.pads) // 2], step.pads[len(step.pads) // 2 :]
        (top, left), (bottom, right) = ((0, *side)[-2:] for side in (before, after))
        return Frame(top, left, bottom, right)

    def __or__(self, other: Frame) -> Frame:
        """The smallest frame that both are inside."""
        return Frame(
            max(self.top, other.top),
            max(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def outer(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """[samples, rows, width, channels] of a tensor [samples, channels, *sizes] with it."""
        samples, channels, *sizes = shape
        rows, width = (1, *sizes)[-2:]
        return (
            samples, self.top + rows + self.bottom, self.left + width + self.right, channels,
        )  # fmt: skip

    def inside(self, shape: tuple[int, ...]) -> View:
        """Where a tensor [samples, channels, *sizes] is in its framed image."""
        sample, row, pixel, channel = strides_of(self.outer(shape))
        along = (row, pixel)[4 - len(shape) :]
        return View(shape, (sample, channel, *along), self.top * row + self.left * pixel)

    def border(self, shape: tuple[int, ...], value: int) -> Border:
        """The kernel that fills it."""
        return Border(self.outer(shape), (self.top, self.left), (self.bottom, self.right), value)


def frames(
    program: Program, shapes: Mapping[str, tuple[int, ...]], images: frozenset[str]
) -> dict[str, Frame]:
    """Of the tensors that are framed: the largest one that a convolution reads.

    images: names of the tensors whose channels are innermost.
    """
    found: dict[str, Frame] = {}
    kept = {ref.name for step in program.steps for ref in reads(step) if _wants_dense(step, shapes)}
    made = {ref.name for step in program.steps for ref in writes(step) if _writes_anywhere(step)}
    for step in program.steps:
        if isinstance(step, Convolve) and step.weight.ndim <= 4 and any(step.pads):
            found[step.input] = found.get(step.input, Frame()) | Frame.of(step)
    return {name: found[name] for name in found if name in (made & images) - kept}


def _wants_dense(step: Step, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Reads rows of a matrix, or single pixels of short rows of an image."""
    if not isinstance(step, Convolve):
        return isinstance(step, Gemm)
    window, strides = step.weight.shape[2:], step.strides
    single = all(size == 1 for size in (*window, *strides)) and step.weight.shape[1] > 1
    return single and shapes[step.input][-1] < DENSE_ROWS


def _writes_anywhere(step: Step) -> bool:
    """By the strides of its output; products and gathered rows have an order of their own."""
    gathers = isinstance(step, Apply) and step.op_type == "Gather"
    return not gathers and not isinstance(step, Gemm | MatMul)
