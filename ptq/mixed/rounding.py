"""Rounded weights of layers at any width, each computed once and kept in the work folder.

A layer's rounding depends on its float inputs and on the scales around it, not on what other
layers' weights are rounded to: any mix of widths is put together from these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ptq.integer.layer_precision import weight_bits
from ptq.integer.units import Unit
from ptq.integer.weights import unit_bias
from ptq.mixed.study import Study
from ptq.opening import Run
from ptq.passes.choose_activation_grids import ChooseActivationGrids
from ptq.passes.collect_grams import Moments, batches_of_units, collect_moments, weight_rows
from ptq.passes.context import Context, Progress
from ptq.passes.quantize_weights import quantize_weight
from ptq.passes.rounding import bias_shift
from ptq.passes.search_exponent import WIDEST, SearchExponent, base_grid, layer_grid
from ptq.pipeline import correct_biases
from ptq.plan import Plan, WeightPlan

GRAM_BYTES = 1 << 30


@dataclass(frozen=True)
class Rounded:
    """A layer's rounded weight, and its bias with the mean error of the rounding removed."""

    weight: WeightPlan
    bias: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """A layer at one width between the grids of a plan."""

    context: Context
    plan: Plan
    unit: Unit

    @property
    def key(self) -> str:
        """Hash of all that the rounding depends on besides the network and its samples."""
        outline, bits = self.context.outline, weight_bits(self.unit, self.context.recipe)
        x, y = (
            self.plan.activations[outline.site(name)]
            for name in (self.unit.inputs[0], self.unit.output)
        )
        said = (self.unit.name, bits, x.scale, y.scale, y.zero_point, y.low, y.high)
        return hashlib.blake2b(repr(said).encode(), digest_size=12).hexdigest()


def plan_of(study: Study, run: Run) -> Plan:
    """The plan of a run with rounded weights and, if the recipe asks for it, corrected biases."""
    context = run.context
    plan = ChooseActivationGrids()(context, Plan(), study.histograms)
    jobs = [Job(context, plan, unit) for unit in context.outline.weighted]
    found = round_all(study, jobs)
    weights = {job.unit.name: found[job.key].weight for job in jobs}
    return correct_biases(context, plan.with_weights(weights))


def jobs_at(study: Study, run: Run, widths: Sequence[int]) -> list[Job]:
    """Every layer of a run at every width, between the run's grids."""
    plan = ChooseActivationGrids()(run.context, Plan(), study.histograms)
    return [
        Job(run.context, plan, replace(unit, precision=replace(unit.precision, weight_bits=bits)))
        for unit in run.context.outline.weighted
        for bits in widths
    ]


def round_all(study: Study, jobs: Iterable[Job]) -> dict[str, Rounded]:
    """The rounded weights of all jobs by key; what is not in the cache is computed."""
    folder = study.cache / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {job.key: job for job in jobs}
    missing: dict[str, list[Job]] = {}
    for key, job in wanted.items():
        if not (folder / key).exists():
            missing.setdefault(job.unit.name, []).append(job)
    _compute(study.context, missing, folder)
    return {key: _read(folder / key, job.unit.name) for key, job in wanted.items()}


def _compute(context: Context, missing: dict[str, list[Job]], folder: Path) -> None:
    alone = [(jobs[0].unit,) for jobs in missing.values()]
    for part in batches_of_units(alone, GRAM_BYTES):
        moments = collect_moments(context, part)
        for done, (unit,) in enumerate(part, 1):
            seen = moments.pop(unit.name)
            for job in missing[unit.name]:
                _write(folder / job.key, job.unit.name, _round(job, seen))
            context.report(Progress("round candidates", done, len(part), unit.name))


def _round(job: Job, moments: Moments) -> Rounded:
    second_order = job.context.recipe.rounding == "gptq"
    plan = _with_power_grid(job, moments if second_order else None)
    weight = quantize_weight(job.context, plan, job.unit, moments if second_order else None)
    mean = moments.mean / max(moments.count, 1)
    exact = weight_rows(job.unit).astype(np.float64)
    rounded = np.moveaxis(weight.dequantize(), weight.axis, 0).reshape(exact.shape)
    shift = bias_shift(exact, rounded, mean, mean) if job.context.recipe.bias_correction else 0.0
    return Rounded(weight, unit_bias(job.unit) + shift)


def _with_power_grid(job: Job, moments: Moments | None) -> Plan:
    """The job's plan with the layer's best power grid, if the recipe has such grids.

    For 'auto', `quantize_weight` then takes it or the uniform one, whichever costs the layer's
    output less: that is the best grid type at this width, and neither costs more than the other.
    """
    context, unit = job.context, job.unit
    if context.recipe.grid not in ("power", "auto") or context.weight_bits(unit) > WIDEST:
        return job.plan
    squares = None
    if moments is not None and moments.gram is not None:
        squares = np.diagonal(moments.gram, axis1=1, axis2=2) / max(moments.count, 1)
    base = base_grid(context, job.plan, unit)
    grid = layer_grid(SearchExponent(), context, unit, base, squares)
    return job.plan.with_grids({unit.name: grid})


def _write(path: Path, name: str, rounded: Rounded) -> None:
    temporary = path.with_suffix(".tmp")
    Plan(weights={name: rounded.weight}, biases={name: rounded.bias}).save(temporary)
    temporary.replace(path)


def _read(path: Path, name: str) -> Rounded:
    plan = Plan.load(path)
    return Rounded(plan.weights[name], plan.biases[name])
