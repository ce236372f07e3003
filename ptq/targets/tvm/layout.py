"""Where the elements of a code tensor are: channels last for images, row-major for the rest.

A kernel takes any strides, so the choice is one of speed, and nothing else depends on it.
"""

from __future__ import annotations

from ptq.integer.program import Add, Apply, Convolve, Lookup, Mean, Multiply, Program, Step
from ptq.kernels.view import View

KEEPS_LAYOUT = frozenset(
    {"MaxPool", "ReduceMax", "ReduceMin", "Resize", "Pad", "Concat", "Slice", "Split"}
)


def channels_last(program: Program, ranks: dict[str, int]) -> frozenset[str]:
    """Names of the values whose channels are innermost: convolutions', and what follows them."""
    chosen: set[str] = set()
    for step in program.steps:
        if isinstance(step, Convolve):
            chosen |= {step.input, step.output}
    for step in program.steps:
        sources, results = _flow(step)
        if any(name in chosen for name in sources):
            rank = max(ranks[name] for name in sources)
            chosen |= {name for name in results if ranks[name] == rank}
    return frozenset(name for name in chosen if ranks[name] >= 3)


def _flow(step: Step) -> tuple[list[str], list[str]]:
    """Code tensors in and out of a step that keeps the axes of its input."""
    if isinstance(step, Add | Multiply):
        return [step.a, step.b], [step.output]
    if isinstance(step, Lookup | Mean):
        return [step.input], [step.output]
    if isinstance(step, Apply) and step.op_type in KEEPS_LAYOUT:
        sources = [ref.name for ref in step.inputs if ref is not None and ref.codes]
        return sources, [ref.name for ref in step.outputs if ref.codes]
    return [], []


def view_of(shape: tuple[int, ...], last: bool) -> View:
    """A dense view of a tensor [n, channels, *spatial]; last: its channels are innermost."""
    axes = [0, *range(2, len(shape)), 1] if last else list(range(len(shape)))
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= shape[axis]
    return View(shape, tuple(strides))
