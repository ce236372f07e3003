"""Learn rounding: block by block, by gradients, on the integers that will run.

Inputs of a block are codes that the already learned prefix makes, targets are the float model's
outputs of the same block (BRECQ, arXiv 2102.05426); activations are left unrounded at random while
learning if `drop` says so (QDrop, arXiv 2203.05740). Codes and biases are learned on the scales of
the plan, which the integer program runs as they are; where scales are learned too, they are nudged
to such scales afterwards.

A block is kept only if it lowers its output's error on samples it has not seen. Whether the whole
brings the network nearer to the float one is for the ladder to judge (`ptq.ladder`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ptq.calib_data.spec import common_batch, input_specs
from ptq.integer.blocks import Block, find_blocks, whole_network
from ptq.passes.context import Context
from ptq.plan import Plan

_LOG = logging.getLogger("ptq")

FINEST = 8
"""Weights of so many bits keep their codes: rounding has nothing left to gain there, and they stay
within what their pairs may sum to."""

UNSTACKED = "the model gives several samples at a time other results than one by one"

Kind = Literal["codes", "bias", "steps", "scales", "exponents"]


@dataclass(frozen=True)
class LearnRounding:
    """Learned codes, biases and scales of every layer with a weight.

    learns: what moves: 'codes' and 'bias' of weighted layers, 'steps' of activations below 8 bits
        inside a block, 'scales' of weights, 'exponents' of power grids.
    iterations: steps of the optimizer a block. batch: at most so many samples a step.
    lr: of codes, in codes; bias_lr: of biases, in codes of the layer's output; scale_lr: of steps
        and scales, in their logarithms; exponent_lr: likewise, until half of the steps are done.
    drop: probability that an element of an activation is left unrounded.
    whole: the network is one block: what is left to gain once the blocks are good.
    loss: squared error of the block's outputs ('mse'), the same weighted by the Fisher diagonal
        ('fisher'), or KL divergence of the network's outputs with the rest of it in floats ('kl').
    variable: 'latent' (any code, straight-through), 'adaround' (one of two, soft) or 'flexround'
        (any code, by dividing).
    regulariser: what drives adaround's soft codes to integers.
    """

    learns: tuple[Kind, ...] = ("codes", "bias")
    iterations: int = 300
    batch: int = 32
    lr: float = 1e-2
    bias_lr: float = 5e-3
    scale_lr: float = 3e-3
    exponent_lr: float = 3e-3
    drop: float = 0.0
    whole: bool = False
    loss: Literal["mse", "fisher", "kl"] = "mse"
    variable: Literal["latent", "adaround", "flexround"] = "latent"
    optimizer: Literal["adam", "radam", "adamp", "signsgd"] = "adam"
    regulariser: float = 1e-5

    @property
    def rates(self) -> Mapping[str, float]:
        """The learning rate of each kind of parameter that moves."""
        known = {
            "codes": {"codes": self.lr, "rows": self.lr},
            "bias": {"bias": self.bias_lr},
            "steps": {"steps": self.scale_lr},
            "scales": {"scales": self.scale_lr},
            "exponents": {"exponent": self.exponent_lr},
        }
        return {name: rate for kind in self.learns for name, rate in known[kind].items()}

    @property
    def title(self) -> str:
        """What progress calls it."""
        what = "rounding" if "codes" in self.learns else " and ".join(self.learns)
        return f"learn {what} of the whole" if self.whole else f"learn {what}"

    def __call__(self, context: Context, plan: Plan) -> Plan:
        """A plan with what was learned, or the same plan if no block gained."""
        from ptq.execute.differentiable import one_thread
        from ptq.passes.learning.run import Run
        from ptq.passes.learning.sample_axes import sample_axes
        from ptq.passes.learning.samples import PART, Layout, SampleStore

        blocks: tuple[Block, ...] = find_blocks(context.model, context.outline)
        if self.whole:
            blocks = (whole_network(context.model, context.outline),)
        reason, axes = _obstacle(context), None
        if reason is None:
            names = [name for block in blocks for name in (*block.inputs, *block.outputs)]
            axes = sample_axes(context.model, names, context.batches(1))
        if axes is None:
            _LOG.warning("rounding is not learned: %s", reason or UNSTACKED)
            return plan
        if "codes" in self.learns and all(w.grid.bits >= FINEST for w in plan.weights.values()):
            _LOG.info("rounding is not learned: every weight has %d bits", FINEST)
            return plan
        layout, half = Layout.of(context.batches(PART), axes), context.memory_bytes // 2
        stores = SampleStore(layout, half), SampleStore(layout, half)
        with one_thread(), stores[0], stores[1]:
            return Run(self, context, plan, blocks, stores).learn()


def _obstacle(context: Context) -> str | None:
    """Why nothing can be learned, or None."""
    from ptq.execute.differentiable import unsupported

    if not common_batch(input_specs(context.model))[0]:
        return "the inputs share no batch axis, so that samples cannot be put together"
    if context.count() < 2:
        return "it needs two samples at least"
    if not context.outline.weighted:
        return "no layer has a weight"
    if missing := unsupported(context.model.graph):
        return f"no gradients of {', '.join(missing)}"
    return None
