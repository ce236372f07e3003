"""From a study to scores, and from scores and budgets to an allocation."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from ptq.integer.claims import real
from ptq.integer.layer_precision import activation_bits
from ptq.integer.units import Outline, Unit
from ptq.integer.weights import unit_bias, unit_weight
from ptq.mixed.costs import LayerSize, layer_sizes, weight_costs
from ptq.mixed.rounding import jobs_at, round_all
from ptq.mixed.study import Study
from ptq.passes.allocate_bits import Allocation, Choice, Option, Problem, allocate_bits
from ptq.passes.choose_activation_grids import ChooseActivationGrids
from ptq.passes.score_importance import Importance, ScoreImportance, WeightError
from ptq.plan import ActivationPlan, Plan
from ptq.precision import Precision

WEIGHT_WIDTHS = (2, 3, 4, 5, 6, 8)
ACTIVATION_WIDTHS = (4, 5, 6, 8)


@dataclass(frozen=True)
class Chooser:
    """Chooses the widths of a study's layers.

    activation_widths: of layers other than the first and last; none leaves them as the recipe says.
    """

    study: Study
    weight_widths: Sequence[int] = WEIGHT_WIDTHS
    activation_widths: Sequence[int] = ()
    score: ScoreImportance = ScoreImportance()  # noqa: RUF009 frozen

    def allocate(self, budgets: Mapping[str, float], objective: str = "loss") -> Allocation:
        """The best allocation within budgets; see `allocate_bits`."""
        return allocate_bits(self.problem, budgets, objective)

    @cached_property
    def sizes(self) -> dict[str, LayerSize]:
        """Sizes of the weighted layers."""
        return layer_sizes(self.study.context)

    @cached_property
    def importance(self) -> Importance:
        """Scores, from the work folder if they are there."""
        path = self.study.cache / f"{self._scores_name()}.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Importance)
        found = self.score(self.study.context, self._weight_errors(), self._grids())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(found))
        return found

    @cached_property
    def problem(self) -> Problem:
        """Every layer's options, with scores and costs."""
        outline = self.study.context.outline
        choices = [
            Choice(unit.name, outline.site(unit.inputs[0]), self._options(unit))
            for unit in outline.weighted
        ]
        return Problem(tuple(choices), self.importance.activations, ties(outline))

    def _options(self, unit: Unit) -> tuple[Option, ...]:
        usual = activation_bits(unit, self.study.recipe)
        narrow = self.activation_widths if not unit.edge else ()
        found = []
        for bits, loss in self.importance.weights[unit.name].items():
            for activation in narrow or (None,):
                costs = weight_costs(self.sizes, unit.name, bits, activation or usual)
                found.append(Option(Precision(bits, activation), loss, costs))
        return tuple(found)

    def _weight_errors(self) -> dict[str, dict[int, WeightError]]:
        """What rounding does to every layer at every width."""
        jobs = jobs_at(self.study, self.study.run, self.weight_widths)
        rounded = round_all(self.study, jobs)
        errors: dict[str, dict[int, WeightError]] = {}
        for job in jobs:
            unit, found = job.unit, rounded[job.key]
            alpha = real(unit.node, "alpha", 1.0) if unit.node.op_type == "Gemm" else 1.0
            delta = (found.weight.dequantize() - unit_weight(unit)) / alpha
            shift = found.bias - unit_bias(unit)
            error = WeightError(delta.astype(np.float32), shift.astype(np.float32))
            errors.setdefault(unit.name, {})[found.weight.grid.bits] = error
        return errors

    def _grids(self) -> dict[str, dict[int, ActivationPlan]]:
        """The grid of every tensor that a layer reads, at every width it may have."""
        names = [unit.name for unit in self.study.context.outline.weighted if not unit.edge]
        grids: dict[str, dict[int, ActivationPlan]] = {}
        for bits in self.activation_widths:
            run = self.study.with_precisions({glob.escape(name): f"a{bits}" for name in names})
            plan = ChooseActivationGrids()(run.context, Plan(), self.study.histograms)
            for unit in run.context.outline.weighted:
                site = run.context.outline.site(unit.inputs[0])
                if not unit.edge:
                    grids.setdefault(site, {})[bits] = plan.activations[site]
        return grids

    def _scores_name(self) -> str:
        recipe = self.study.recipe
        widths = "-".join(map(str, (*self.weight_widths, 0, *self.activation_widths)))
        return f"scores-{recipe.precision}-{recipe.edge_bits}-{widths}-{self.score.probes}"


def precision_map(precisions: Mapping[str, Precision]) -> dict[str, str]:
    """The map that gives each layer its precision: names as globs that match nothing else."""
    return {glob.escape(name): str(precision) for name, precision in precisions.items()}


def ties(outline: Outline) -> tuple[frozenset[str], ...]:
    """Groups of tensors whose codes should share a grid: what a Concat joins, and its result."""
    return tuple(
        frozenset(outline.site(name) for name in (*unit.inputs, unit.output))
        for unit in outline.units
        if unit.kind == "concat"
    )
