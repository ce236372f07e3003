"""Scales being learned: activation steps and weight scales, as logarithms of a factor.

A requantiser's ratio is x_scale * w_scale / y_scale, so a factor on any of the three is a factor on
the ratio, and autograd through the rounding gives the gradient of LSQ (arXiv 1902.08153). What was
learned is snapped to scales that the integer program can run when it goes into the plan; rounding
is learned on those afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ptq.integer.flow import reads, writes
from ptq.integer.program import (
    Add,
    Apply,
    Convolve,
    Dequantize,
    Lookup,
    Program,
    Quantize,
    Ref,
    Step,
)
from ptq.passes.learning.layers import Layer

OPERANDS: Mapping[str, tuple[str, ...]] = {
    "Convolve": ("input",),
    "Gemm": ("input",),
    "Mean": ("input",),
    "MatMul": ("a", "b"),
    "Multiply": ("a", "b"),
}
"""Steps whose ratio has the scales of these operands as factors; Add has one ratio for each."""

FINEST = 8
"""Activations of so many bits keep their steps: there is nothing to gain."""


class Scales:
    """Factors of the scales inside one block.

    sites: names of activations whose steps are learned; site_of: the site of every value.
    layers: layers whose weight scales are learned.
    """

    def __init__(
        self,
        sites: Collection[str],
        layers: Sequence[Layer],
        site_of: Callable[[str], str],
        device: torch.device,
    ) -> None:
        self.site_of = site_of
        self.steps = {s: torch.zeros((), device=device, requires_grad=True) for s in sites}
        self.weights = {
            layer.step.name: torch.zeros(len(layer.plan.scale), device=device, requires_grad=True)
            for layer in layers
        }

    def __bool__(self) -> bool:
        return bool(self.steps or self.weights)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Leaf tensors with their kind."""
        yield from (("steps", tensor) for tensor in self.steps.values())
        yield from (("scales", tensor) for tensor in self.weights.values())

    def unit(self, step: Step) -> Tensor | None:
        """The logarithm of the factor on one unit of a step's accumulator, None if it stays."""
        names = [getattr(step, field) for field in OPERANDS.get(type(step).__name__, ())]
        found = [self.steps.get(self.site_of(name)) for name in names]
        return _sum([*found, self.weights.get(step.name)])

    def overrides(self, steps: Sequence[Step], device: torch.device) -> dict[str, Tensor]:
        """Ratios and scales of the steps under the present factors."""
        found = {}
        for step in steps:
            if isinstance(step, Dequantize):
                continue
            output = None if isinstance(step, Apply | Quantize) else self._step(step.output)
            if isinstance(step, Add):
                factors = [_sum([self._step(x), _minus(output)]) for x in (step.a, step.b)]
                if any(factor is not None for factor in factors):
                    shares = np.asarray(step.multipliers, np.float64) * step.requantizer.ratio
                    base = torch.tensor(shares, dtype=torch.float32, device=device)
                    zero = torch.zeros((), device=device)
                    found[f"{step.name}.ratio"] = (
                        base * torch.stack([zero if f is None else f for f in factors]).exp()
                    )
            elif type(step).__name__ in OPERANDS:
                factor = _sum([self.unit(step), _minus(output)])
                if factor is not None:
                    requantised: Convolve = step  # type: ignore[assignment]
                    base = torch.tensor(requantised.requantizer.ratio, device=device)
                    found[f"{step.name}.ratio"] = base * factor.exp()
        return found

    def factors(self) -> dict[str, float]:
        """What to multiply the step of each site with."""
        return {name: float(log.detach().exp()) for name, log in self.steps.items()}

    def _step(self, name: str) -> Tensor | None:
        return self.steps.get(self.site_of(name))


def learnable_sites(
    program: Program,
    steps: Sequence[Step],
    inputs: Sequence[Ref],
    outputs: Sequence[Ref],
    site_of: Callable[[str], str],
) -> tuple[str, ...]:
    """Sites made and read inside these steps only, by steps whose ratios have them as factors."""
    learnable, within = (*OPERANDS, "Add"), (Apply, Lookup)
    made: dict[str, None] = {}
    barred = {site_of(ref.name) for ref in (*inputs, *outputs) if ref.codes}
    for step in steps:
        kind = type(step).__name__
        touched = [site_of(ref.name) for ref in (*reads(step), *writes(step)) if ref.codes]
        if kind in learnable:
            made |= dict.fromkeys(site_of(ref.name) for ref in writes(step))
        elif not (isinstance(step, within) and len(set(touched)) <= 1):
            barred.update(touched)
    return tuple(
        site for site in made if site not in barred and program.codes[site].grid.bits < FINEST
    )


def _minus(x: Tensor | None) -> Tensor | None:
    return None if x is None else -x


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return sum(known[1:], known[0]) if known else None
