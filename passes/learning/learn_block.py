"""Learn one block: gradient steps on a loss of its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ptq.execute.differentiable import (
    ProgramGraph,
    ProgramValues,
    Quantiser,
    Rounding,
    drop_quantization,
)
from ptq.integer.program import Program, Ref, Step, before_levels
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.learned import Learned, start_learning
from ptq.passes.learning.losses import Loss
from ptq.passes.learning.optimizers import OPTIMIZERS
from ptq.passes.learning.scales import Scales
from ptq.passes.learning.shards import LossOf, Part, shared_batches
from ptq.passes.learning.steps import BlockSteps

Array = npt.NDArray[Any]

WARM_UP = 0.2
BETA = (20.0, 2.0)
FROZEN = {"exponent": 0.5}
"""When a kind of parameter stops moving, as a share of the iterations; the others at the end."""


@dataclass(frozen=True)
class Options:
    """How a block is learned; see LearnRounding. rates: learning rate of each kind that moves."""

    iterations: int
    rates: Mapping[str, float]
    drop: float
    variable: str
    optimizer: str
    regulariser: float
    seed: int


@dataclass(frozen=True)
class Task:
    """A block and what is learned in it.

    draw: random samples, in parts of equal shapes. loss: of its float outputs by name.
    report: called with iterations done and the loss.
    """

    program: Program
    block: BlockSteps
    layers: Sequence[Layer]
    sites: Sequence[str]
    site_of: Callable[[str], str]
    draw: Callable[[np.random.Generator], Sequence[Part]]
    loss: Loss
    report: Callable[[int, float], None]


def learn_block(task: Task, options: Options) -> tuple[list[Learned], Scales]:
    """Layers and scales of the block after learning."""
    device = device_of_choice()
    learned = start_learning(task.layers, options.variable, device)
    scales = Scales(
        task.sites if "steps" in options.rates else (),
        task.layers if "scales" in options.rates else (),
        task.site_of,
        device,
    )
    groups = _groups(learned, scales, options)
    if not groups:
        return learned, scales
    optimizer = OPTIMIZERS[options.optimizer](groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = np.random.default_rng(options.seed)
    leaves = [tensor for group in groups for tensor in group["params"]]
    loss_of = _loss_of(task, options, learned, scales, device)
    with shared_batches(loss_of, leaves, device, options.seed) as set_gradients:
        for done in range(options.iterations):
            share = done / options.iterations
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * decay(share / FROZEN.get(group["kind"], 1.0))
            loss = set_gradients(task.draw(generator))
            penalty = _penalty(learned, share, options)
            if penalty is not None:
                penalty.backward()
            optimizer.step()
            for part in learned:
                part.variable.settle()
            task.report(done + 1, loss)
    return learned, scales


def _loss_of(
    task: Task, options: Options, learned: list[Learned], scales: Scales, device: torch.device
) -> LossOf:
    """A function that runs the block as it is now on a batch, and says how far off it is."""
    program, block = task.program, task.block
    names, on_their_way = [ref.name for ref in block.outputs], before_levels(program)
    graph = ProgramGraph(program, block.steps, outputs=names, exact=False, device=device)

    def loss(samples: Part, noise: torch.Generator) -> Tensor:
        captured: dict[str, Tensor] = {}
        inner = _once(drop_quantization(options.drop, noise), on_their_way)
        quantiser = _capturing(inner, names, captured)
        codes, raw = block_inputs(program, block, samples, device, options.drop, noise)
        overrides = scales.overrides(block.steps, device)
        for part in learned:
            overrides |= part.overrides(scales.unit(part.layer.step))
        values = graph.run(codes, raw, overrides, quantiser)
        wanted = {name: torch.from_numpy(x).to(device) for name, x in samples.wanted.items()}
        found = float_outputs(program, block, values, captured, wanted)
        return task.loss(found, wanted)

    return loss


def decay(share: float) -> float:
    """What is left of a learning rate: half a cosine, then nothing."""
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def device_of_choice() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def with_learned(steps: tuple[Step, ...], learned: list[Learned]) -> tuple[Step, ...]:
    """Steps whose weights and biases are what was learned."""
    changed: dict[str, Step] = {part.layer.step.name: part.step() for part in learned}
    return tuple(changed.get(step.name, step) for step in steps)


def block_inputs(
    program: Program,
    block: BlockSteps,
    part: Part,
    device: torch.device,
    drop: float = 0.0,
    noise: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Codes and raw inputs of a block; elements are the float model's with probability `drop`."""
    codes, raw = {}, {}
    for ref in block.inputs:
        x = torch.from_numpy(part.given[ref.name]).to(device)
        if not ref.codes:
            raw[ref.name] = x
            continue
        x = x.to(torch.float32)
        if drop:
            grid = program.codes[ref.name]
            exact = torch.from_numpy(part.exact[ref.name]).to(device)
            exact = (exact / float(grid.scale) + grid.zero_point).clamp(grid.low, grid.high)
            x = torch.where(torch.rand(x.shape, generator=noise, device=device) < drop, exact, x)
        codes[ref.name] = x
    return codes, raw


def float_outputs(
    program: Program,
    block: BlockSteps,
    values: ProgramValues,
    captured: Mapping[str, Tensor],
    wanted: Collection[str],
) -> dict[str, Tensor]:
    """The block's float outputs as they are before their last rounding."""
    return {
        ref.name: values_of(program, ref, values, captured)
        for ref in block.outputs
        if ref.name in wanted
    }


def values_of(
    program: Program, ref: Ref, values: ProgramValues, captured: Mapping[str, Tensor]
) -> Tensor:
    """An output in the float model's units."""
    if not ref.codes:
        return values.raw[ref.name]
    grid = program.codes[ref.name]
    codes = captured.get(ref.name, values.codes[ref.name])
    return (codes - grid.zero_point) * float(grid.scale)


def hard_run(
    program: Program, block: BlockSteps, steps: tuple[Step, ...]
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function from the block's inputs to its outputs, as the integer program makes them.

    Codes are in their containers, raw values have the model's types.
    """
    device = device_of_choice()
    graph = ProgramGraph(program, steps, outputs=[r.name for r in block.outputs], device=device)

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            codes, raw = block_inputs(program, block, Part(0, given, {}, {}), device)
            values = graph.run(codes, raw)
            return {ref.name: _stored(program, ref, values) for ref in block.outputs}

    return run


def _stored(program: Program, ref: Ref, values: ProgramValues) -> Array:
    if not ref.codes:
        return values.raw[ref.name].cpu().numpy()
    codes: Array = values.codes[ref.name].cpu().numpy()
    return codes.astype(program.codes[ref.name].dtype)


def _once(inner: Quantiser, on_their_way: Collection[str]) -> Quantiser:
    """A quantiser that leaves the rounding of these values to the levels that they go on to."""

    def quantise(name: str, rounding: Rounding) -> Tensor:
        return rounding.unrounded() if name in on_their_way else inner(name, rounding)

    return quantise


def _capturing(inner: Quantiser, names: list[str], captured: dict[str, Tensor]) -> Quantiser:
    """A quantiser that remembers the block's outputs as they were before rounding."""

    def quantise(name: str, rounding: Rounding) -> Tensor:
        if name in names:
            captured[name] = rounding.unrounded()
        return inner(name, rounding)

    return quantise


def _groups(learned: list[Learned], scales: Scales, options: Options) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, one for each kind that has a learning rate."""
    kinds: dict[str, list[Tensor]] = {}
    parameters = [*chain(*(part.parameters() for part in learned)), *scales.parameters()]
    for kind, tensor in parameters:
        if options.rates.get(kind):
            kinds.setdefault(kind, []).append(tensor)
        else:
            tensor.requires_grad_(False)
    return [
        {"params": tensors, "lr": options.rates[kind], "kind": kind}
        for kind, tensors in kinds.items()
    ]


def _penalty(learned: list[Learned], share: float, options: Options) -> Tensor | None:
    if share < WARM_UP:
        return None
    beta = BETA[1] + (BETA[0] - BETA[1]) * 0.5 * (
        1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))
    )
    parts = [part.variable.penalty(beta) for part in learned]
    found = [part for part in parts if part is not None]
    return options.regulariser * torch.stack(found).sum() if found else None
