"""The Fisher diagonal of the tensors between blocks: how much each element matters.

    F = E over labels y drawn from the model's own p(y | x) of (d log p(y | x) / dz)^2

Needs no labels of the data. The mean over the samples is kept, so one backward pass over them
serves all blocks (the weights of BRECQ, arXiv 2102.05426, eq. 10, are the same with a label given).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ptq.errors import UsageError
from ptq.execute.differentiable import FloatGraph, to_tensor
from ptq.integer.blocks import Block
from ptq.passes.learning.losses import Array
from ptq.passes.learning.samples import SampleStore

BATCH = 8


def fisher_diagonals(
    blocks: Sequence[Block], opset: int, samples: SampleStore, results: Sequence[str], seed: int
) -> dict[str, Array]:
    """By float output of a block: [1, ...] float32 with a mean of one; none if no output is
    a row of class scores.

    Raises:
        UsageError: samples of several shapes, whose elements cannot be averaged.
    """
    if samples.layout.group.any():
        raise UsageError("Fisher weights need samples of one shape; take the squared error")
    generator = torch.Generator().manual_seed(seed)
    graphs = [FloatGraph(block.nodes, opset, outputs=block.outputs) for block in blocks]
    sums: dict[str, Tensor] = {}
    inputs = list(dict.fromkeys(n for block in blocks for n in block.inputs if n in samples))
    for index in samples.layout.parts(np.arange(samples.layout.samples), BATCH):
        values = {n: to_tensor(x).requires_grad_() for n, x in samples.take(inputs, index).items()}
        between = _forward(blocks, graphs, values)
        scores = [between[n] for n in results if between[n].ndim == 2 and between[n].shape[1] > 1]
        if not scores:
            return {}
        names = [n for n, x in between.items() if x.requires_grad and x.is_floating_point()]
        total = torch.stack([_log_probability(x, generator) for x in scores]).sum()
        found = torch.autograd.grad(total, [between[n] for n in names], allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                square = gradient.square().sum(0, keepdim=True)
                sums[name] = sums[name] + square if name in sums else square
    return {name: _normalised(x) for name, x in sums.items()}


def _forward(
    blocks: Sequence[Block], graphs: Sequence[FloatGraph], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors that blocks make."""
    known, made = dict(values), dict[str, Tensor]()
    for block, graph in zip(blocks, graphs, strict=True):
        found = graph.run({name: known[name] for name in block.inputs})
        known |= found
        made |= found
    return made


def _log_probability(scores: Tensor, generator: torch.Generator) -> Tensor:
    """sum log p(y) of labels drawn from the scores themselves."""
    logs = torch.log_softmax(scores, 1)
    labels = torch.multinomial(logs.detach().exp(), 1, generator=generator)
    return logs.gather(1, labels).sum()


def _normalised(x: Tensor) -> Array:
    weight: Array = (x / x.mean().clamp(min=1e-30)).numpy()
    return weight
