"""Learn one block: Adam on the error of its output, activations quantised at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from ptq.integer.program import Program, Ref, Step
from ptq.passes.learning.layers import Layer
from ptq.passes.learning.learned import Learned, start_learning
from ptq.passes.learning.steps import BlockSteps

Array = npt.NDArray[Any]

WARM_UP = 0.2
BETA = (20.0, 2.0)


@dataclass(frozen=True)
class Options:
    """How a block is learned; see LearnRounding. rates: learning rates by kind of parameter."""

    iterations: int
    rates: Mapping[str, float]
    drop: float
    variable: str
    regulariser: float
    seed: int


@dataclass(frozen=True)
class Batch:
    """codes: inputs of the block in the integer network; exact: the same in the float model;
    wanted: the float model's outputs. By name, as arrays [n, ...]."""

    given: Mapping[str, Array]
    exact: Mapping[str, Array]
    wanted: Mapping[str, Array]


def learn_block(
    program: Program,
    block: BlockSteps,
    layers: list[Layer],
    draw: Callable[[np.random.Generator], Batch],
    options: Options,
    report: Callable[[int, float], None],
) -> tuple[Step, ...]:
    """The block's steps with learned weights and biases.

    draw: a random batch. report: called with iterations done and the loss.
    """
    device = device_of_choice()
    generator = np.random.default_rng(options.seed)
    noise = torch.Generator(device).manual_seed(options.seed)
    names = [ref.name for ref in block.outputs]
    graph = ProgramGraph(program, block.steps, outputs=names, exact=False, device=device)
    learned = start_learning(layers, options.variable, device)
    if not learned:
        return block.steps
    optimizer = torch.optim.Adam(_groups(learned, options), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    for done in range(options.iterations):
        share = done / options.iterations
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
        batch = draw(generator)
        captured: dict[str, Tensor] = {}
        quantiser = _capturing(drop_quantization(options.drop, noise), names, captured)
        codes, raw = block_inputs(program, block, batch, device, options.drop, noise)
        overrides: dict[str, Tensor] = {}
        for part in learned:
            overrides |= part.overrides()
        values = graph.run(codes, raw, overrides, quantiser)
        loss = output_error(program, block, values, captured, batch.wanted)
        total = loss + _penalty(learned, share, options)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        for part in learned:
            part.variable.settle()
        report(done + 1, float(loss.detach()))
    return with_learned(block.steps, learned)


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
    batch: Batch,
    device: torch.device,
    drop: float = 0.0,
    noise: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Codes and raw inputs of a block; elements are the float model's with probability `drop`."""
    codes, raw = {}, {}
    for ref in block.inputs:
        x = torch.from_numpy(batch.given[ref.name]).to(device)
        if not ref.codes:
            raw[ref.name] = x
            continue
        x = x.to(torch.float32)
        if drop:
            grid = program.codes[ref.name]
            exact = torch.from_numpy(batch.exact[ref.name]).to(device)
            exact = (exact / float(grid.scale) + grid.zero_point).clamp(grid.low, grid.high)
            x = torch.where(torch.rand(x.shape, generator=noise, device=device) < drop, exact, x)
        codes[ref.name] = x
    return codes, raw


def output_error(
    program: Program,
    block: BlockSteps,
    values: ProgramValues,
    captured: Mapping[str, Tensor],
    wanted: Mapping[str, Array],
) -> Tensor:
    """Squared error of the block's float outputs over their energy, before the last rounding."""
    parts = []
    for ref in block.outputs:
        if wanted[ref.name].dtype.kind != "f":
            continue
        x = values_of(program, ref, values, captured)
        target = torch.from_numpy(wanted[ref.name]).to(x.device)
        parts.append((x - target).square().sum() / target.square().sum().clamp(min=1e-12))
    return torch.stack(parts).sum()


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

    Codes are uint8, raw values have the model's types.
    """
    device = device_of_choice()
    graph = ProgramGraph(program, steps, outputs=[r.name for r in block.outputs], device=device)

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            codes, raw = block_inputs(program, block, Batch(given, {}, {}), device)
            values = graph.run(codes, raw)
            found = {
                ref.name: values.codes[ref.name].to(torch.uint8)
                if ref.codes
                else values.raw[ref.name]
                for ref in block.outputs
            }
        return {name: x.cpu().numpy() for name, x in found.items()}

    return run


def _capturing(inner: Quantiser, names: list[str], captured: dict[str, Tensor]) -> Quantiser:
    """A quantiser that remembers the block's outputs as they were before rounding."""

    def quantise(name: str, rounding: Rounding) -> Tensor:
        if name in names:
            captured[name] = rounding.unrounded()
        return inner(name, rounding)

    return quantise


def _groups(learned: list[Learned], options: Options) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, one for each kind of parameter."""
    kinds: dict[str, list[Tensor]] = {}
    for part in learned:
        for kind, tensor in part.parameters().items():
            kinds.setdefault(kind, []).append(tensor)
    return [{"params": tensors, "lr": options.rates[kind]} for kind, tensors in kinds.items()]


def _penalty(learned: list[Learned], share: float, options: Options) -> Tensor | float:
    if share < WARM_UP:
        return 0.0
    beta = BETA[1] + (BETA[0] - BETA[1]) * 0.5 * (
        1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))
    )
    parts = [part.variable.penalty(beta) for part in learned]
    found = [part for part in parts if part is not None]
    return options.regulariser * torch.stack(found).sum() if found else 0.0
