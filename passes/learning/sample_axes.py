"""Along which axis of a tensor the samples of a batch lie: seen by running two batches as one.

A fixed batch size is only a declaration in most models; where it is a number in their arithmetic
(the target of a Reshape, say), running two batches as one fails or gives other results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ptq.execute.differentiable import FloatGraph, to_array, to_tensor
from ptq.passes.context import Batch
from ptq.passes.learning.losses import Array

Axes = Mapping[str, int | None]
"""Tensor -> axis; None is a tensor that is the same for all samples of a shape: a mask, say."""


def sample_axes(model: ir.Model, names: Sequence[str], batches: Iterable[Batch]) -> Axes | None:
    """The axes of these tensors of the float model, its inputs among them.

    None if two batches as one give others than one by one.
    """
    first, second = _alike(batches)
    known = {str(value.name) for value in model.graph.inputs}
    made = [name for name in dict.fromkeys(names) if name not in known]
    graph = FloatGraph(model.graph, model.opset_imports.get("", 21), outputs=made)

    def run(feed: Batch) -> dict[str, Array]:
        found = graph.run({name: to_tensor(x, "cpu") for name, x in feed.items()})
        return {**feed, **{name: to_array(x) for name, x in found.items()}}

    try:
        together = run({name: np.concatenate([first[name], second[name]]) for name in first})
    except (RuntimeError, ValueError):
        return None
    axes = dict[str, int | None]()
    one, other = run(first), run(second)
    for name, x in together.items():
        axis = _grown(one[name], x)
        wanted = one[name] if axis is None else np.concatenate([one[name], other[name]], axis)
        if x.shape != wanted.shape or not np.allclose(x, wanted, rtol=1e-3, atol=1e-4):
            return None
        axes[name] = axis
    return axes


def _alike(batches: Iterable[Batch]) -> tuple[Batch, Batch]:
    """The first two of equal shapes, or the first one twice."""
    known: dict[object, Batch] = {}
    for batch in batches:
        shapes = tuple((name, x.shape) for name, x in batch.items())
        if shapes in known:
            return known[shapes], batch
        known[shapes] = batch
    first = next(iter(known.values()))
    return first, first


def _grown(one: Array, two: Array) -> int | None:
    """The axis along which there is more of the second array."""
    sizes = enumerate(zip(one.shape, two.shape, strict=False))
    return next((axis for axis, (a, b) in sizes if a != b), None)
