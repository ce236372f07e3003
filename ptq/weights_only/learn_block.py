"""Learn codes and scales of a block's weights by gradient, on the error of the block's output.

    u: a real number a weight, its code the nearest integer (straight-through)
    w^ = s exp(t) (clip(round(u), 0, 2^b - 1) - z),  s and z [N, blocks]

The latents start at the rounded codes, moved towards the float weight by at most NEAR, as they do
for integer networks (ptq.passes.learning.uniform). The aim is what the float network has there,
from the inputs that the quantised one has (BRECQ, https://arxiv.org/abs/2102.05426).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from ptq.execute.differentiable import FloatGraph, one_thread, to_tensor, unsupported
from ptq.passes.learning.optimizers import OPTIMIZERS
from ptq.passes.learning.uniform import HALF, NEAR
from ptq.targets.matmul_nbits import stored_scale
from ptq.weights_only.products import Product
from ptq.weights_only.round_product import Rounded
from ptq.weights_only.run import Rates

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
TINY = 1e-12
HELD_OUT = 8


@dataclass(frozen=True)
class Block:
    """What is learned on.

    nodes: of the float model. output: the tensor to match. given: the quantised network's values
    at the block's inputs; wanted: the float network's output; both batch by batch.
    """

    nodes: Sequence[ir.Node]
    opset: int
    products: Sequence[Product]
    output: str
    given: Sequence[Batch]
    wanted: Sequence[Array]


def can_learn(block: Block) -> bool:
    """True if gradients flow through all nodes, and no weight serves two products."""
    weights = [p.node.inputs[1] for p in block.products]
    alone = all(len(w.uses()) == 1 for w in weights if w is not None)
    return alone and not unsupported(block.nodes) and len(block.given) > 1


def learn_block(
    block: Block, rounded: Mapping[str, Rounded], rates: Rates, seed: int
) -> dict[str, Rounded]:
    """The block's products with learned codes and scales, or as they were if that is no gain.

    Every HELD_OUT-th batch is not learned on, and judges.
    """
    graph = FloatGraph(block.nodes, block.opset, outputs=[block.output])
    judged = [index for index in range(len(block.given)) if index % HELD_OUT == HELD_OUT - 1]
    judged = judged or [len(block.given) - 1]
    learned_on = [index for index in range(len(block.given)) if index not in judged]
    with one_thread():
        variables = {p.name: _Variable(p, rounded[p.name]) for p in block.products}
        before = _mean_error(graph, block, variables, judged)
        _descend(graph, block, variables, rates, np.random.default_rng(seed), learned_on)
        after = {name: variable.kept(rounded[name]) for name, variable in variables.items()}
        kept = {p.name: _Variable(p, after[p.name]) for p in block.products}
        better = _mean_error(graph, block, kept, judged) < before
    return after if better else {p.name: rounded[p.name] for p in block.products}


class _Variable:
    """One weight: latents [N, K] and logarithms of scale factors [N, blocks]."""

    def __init__(self, product: Product, rounded: Rounded) -> None:
        found = rounded.blocked
        self.product = product
        self.top = found.grid.size - 1
        self.size = found.codes.shape[1] // found.scale.shape[1]
        self.scale = torch.tensor(found.scale, dtype=torch.float32)
        self.zero_point = torch.tensor(found.zero_point, dtype=torch.float32)
        position = rounded.exact / np.repeat(found.scale, self.size, axis=1)
        position += np.repeat(found.zero_point, self.size, axis=1)
        start = np.clip(position, found.codes - NEAR, found.codes + NEAR)
        self.latent = torch.tensor(start, dtype=torch.float32, requires_grad=True)
        self.factor = torch.zeros_like(self.scale, requires_grad=True)

    def codes(self) -> Tensor:
        """Nearest codes; the gradient passes through the rounding."""
        hard = self.latent.detach().round().clamp(0, self.top)
        return self.latent + (hard - self.latent).detach()

    def weight(self) -> Tensor:
        """In the layout of the float weight."""
        blocks = self.codes().reshape(len(self.scale), -1, self.size) - self.zero_point[..., None]
        rows = (blocks * (self.scale * self.factor.exp())[..., None]).flatten(1)
        rows = rows[:, : self.product.shape[1]]
        return rows if self.product.transposed else rows.T

    def settle(self) -> None:
        """Back to where a code is near."""
        self.latent.data.clamp_(-HALF, self.top + HALF)

    def kept(self, rounded: Rounded) -> Rounded:
        """The nearest codes and the scales as they are stored."""
        codes = self.codes().detach().numpy().astype(np.uint8)
        scale = (self.scale * self.factor.exp()).detach().numpy().astype(np.float64)
        blocked = replace(rounded.blocked, codes=codes, scale=stored_scale(scale))
        outcome = replace(rounded.outcome, learned=True)
        return replace(rounded, blocked=blocked, outcome=outcome)


def _descend(
    graph: FloatGraph,
    block: Block,
    variables: Mapping[str, _Variable],
    rates: Rates,
    generator: np.random.Generator,
    index: Sequence[int],
) -> None:
    """Adam on one batch after another, its rate falling by half a cosine."""
    kinds = {"latent": rates.codes, "factor": rates.scales}
    groups = [
        {"params": [getattr(v, kind) for v in variables.values()], "lr": rate}
        for kind, rate in kinds.items()
    ]
    optimizer = OPTIMIZERS["adam"](groups)
    for done in range(rates.iterations):
        left = 0.5 * (1 + math.cos(math.pi * done / rates.iterations))
        for group, rate in zip(optimizer.param_groups, kinds.values(), strict=True):
            group["lr"] = rate * left
        optimizer.zero_grad()
        _error(graph, block, variables, int(generator.choice(index))).backward()
        optimizer.step()
        for variable in variables.values():
            variable.settle()


def _error(
    graph: FloatGraph, block: Block, variables: Mapping[str, _Variable], index: int
) -> Tensor:
    """Squared error of the output over its energy, on one batch."""
    values = {name: to_tensor(np.asarray(x), "cpu") for name, x in block.given[index].items()}
    for variable in variables.values():
        weight = variable.product.node.inputs[1]
        values[str(weight.name)] = variable.weight()  # type: ignore[union-attr]
    found = graph.run(values)[block.output]
    wanted = to_tensor(np.asarray(block.wanted[index]), "cpu")
    error: Tensor = (found - wanted).square().sum() / wanted.square().sum().clamp(min=TINY)
    return error


def _mean_error(
    graph: FloatGraph, block: Block, variables: Mapping[str, _Variable], index: Sequence[int]
) -> float:
    with torch.no_grad():  # constants are cached, and gradients flow past them later
        return float(np.mean([_error(graph, block, variables, i).item() for i in index]))
