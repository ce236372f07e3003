"""Put what was learned into a plan, on scales that the integer program can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ptq.integer.arithmetic import exact_shift, nudge_scales
from ptq.integer.program import Convolve, Gemm, Program, Step
from ptq.integer.units import Outline
from ptq.passes.learning.learned import Learned
from ptq.passes.learning.scales import Scales
from ptq.plan import ActivationPlan, Plan


def with_steps(program: Program, plan: Plan, before: Sequence[Step], after: Sequence[Step]) -> Plan:
    """The plan whose lowering gives the changed steps: their codes and their biases."""
    for old, new in zip(before, after, strict=True):
        if new is old or not isinstance(new, Convolve | Gemm):
            continue
        if new.stored is None or new.bias is None:
            continue
        plan = plan.with_weights({new.name: new.stored})
        plan = plan.with_biases({new.name: new.bias * _unit(program, new)})
    return plan


def with_scales(
    outline: Outline, program: Program, plan: Plan, learned: Sequence[Learned], scales: Scales
) -> Plan:
    """The plan with learned scales, codes and biases; weight scales are nudged to the new steps."""
    factors = scales.factors()
    plan = plan.with_activations({n: _scaled(plan.activations[n], f) for n, f in factors.items()})
    by_name = {part.layer.step.name: part for part in learned}
    for unit in outline.weighted:
        x, y = outline.site(unit.inputs[0]), outline.site(unit.output)
        part = by_name.get(unit.name)
        if part is None and factors.keys().isdisjoint((x, y)):
            continue
        weight = plan.weights[unit.name] if part is None else part.variable.kept()
        wanted = weight.scale.astype(np.float64)
        if unit.name in scales.weights:
            wanted = wanted * scales.weights[unit.name].detach().exp().cpu().numpy()
        if unit.name in scales.weights or not factors.keys().isdisjoint((x, y)):
            given, made = plan.activations[x], plan.activations[y]
            limit = exact_shift(made.zero_point, made.low, made.high)
            snapped = nudge_scales(wanted, given.scale, made.scale, limit)
            weight = replace(weight, scale=snapped.astype(np.float32))
        plan = plan.with_weights({unit.name: weight})
        if part is not None:
            value = part.exact_bias() * _unit(program, part.layer.step)
            plan = plan.with_biases({unit.name: value})
    return plan


def _unit(program: Program, step: Convolve | Gemm) -> npt.NDArray[np.float64]:
    """The value of one in a step's accumulator: [channels]."""
    return step.weight_scale.astype(np.float64) * float(program.codes[step.input].scale)


def _scaled(grid: ActivationPlan, factor: float) -> ActivationPlan:
    return replace(grid, scale=np.float32(float(grid.scale) * factor))
