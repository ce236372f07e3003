"""Correct biases: remove each layer's mean output error, measured on the samples.

b -= E[W^ x^] - E[W x]: x^ is what the quantised network really feeds the layer, so errors of the
layers before are corrected too. The quantised network runs on integers here, in onnxruntime.
Source: "Data-Free Quantization", arXiv 1906.04721, section 4.2, with measured means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.float import FloatRunner
from ptq.integer.outline import Unit
from ptq.integer.weights import unit_axis, unit_bias
from ptq.passes.collect_grams import groups, mean_column, weight_rows
from ptq.passes.context import Context, Progress
from ptq.plan import Plan

Deploy = Callable[[Plan], ir.Model]
"""Builds the integer model of a plan; its code values are named by `code_name`."""


@dataclass(frozen=True)
class CorrectBias:
    """Measure, correct all layers, measure again.

    rounds: each one corrects every layer given what the last one did to those before it.
    """

    rounds: int = 3

    def __call__(
        self,
        context: Context,
        plan: Plan,
        deploy: Deploy,
        code_name: Callable[[str], str],
    ) -> Plan:
        """A plan whose biases cancel the measured mean errors."""
        units = [unit for unit in context.outline.weighted if unit.name in plan.weights]
        taps = list(dict.fromkeys(unit.inputs[0] for unit in units))
        activations = {name: plan.activations[context.outline.site(name)] for name in taps}
        float_means = _means(context, context.model, units, {n: (n, 0) for n in taps})
        for done in range(self.rounds):
            codes = {n: (code_name(n), activations[n].zero_point) for n in taps}
            means = _means(context, deploy(plan), units, codes)
            changes = {}
            for unit in units:
                seen = float(activations[unit.inputs[0]].scale) * means[unit.name]
                shift = mean_shift(unit, plan, seen, seen)
                changes[unit.name] = unit_bias(unit) + shift
            plan = plan.with_biases(changes)
            context.report(Progress("correct biases", done + 1, self.rounds))
        return plan


def mean_shift(
    unit: Unit, plan: Plan, wanted: npt.NDArray[np.float64], seen: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """E[W x] - E[W^ x^] a channel, from mean input columns [groups * K]."""
    weight = plan.weights[unit.name]
    rounded = np.moveaxis(weight.dequantize(), unit_axis(unit), 0)
    rounded = rounded.reshape(len(rounded), -1)
    return _project(unit, weight_rows(unit).astype(np.float64), wanted) - _project(
        unit, rounded, seen
    )


def _project(
    unit: Unit, rows: npt.NDArray[np.float64], column: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    parts = rows.reshape(groups(unit), -1, rows.shape[1])
    return np.einsum("gok,gk->go", parts, column.reshape(groups(unit), -1)).reshape(-1)


def _means(
    context: Context, model: ir.Model, units: Sequence[Unit], taps: Mapping[str, tuple[str, int]]
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean input column of every unit.

    taps: tensor name -> its name in `model` and what to subtract (the zero point of codes).
    """
    runner = FloatRunner(model, [name for name, _ in taps.values()])
    sums = {unit.name: np.zeros(1) for unit in units}
    for batch in context.batches(context.batch_size(list(taps))):
        tapped = runner.run(batch)
        for unit in units:
            name, offset = taps[unit.inputs[0]]
            x = tapped[name].astype(np.float32) - np.float32(offset)
            sums[unit.name] = sums[unit.name] + mean_column(unit, x)
    runner.close()
    return {name: total[:-1] / max(total[-1], 1) for name, total in sums.items()}
