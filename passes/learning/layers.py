"""A layer whose codes can be learned, as the plan has it before learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.program import Convolve, Gemm, Step
from ptq.integer.units import Unit
from ptq.integer.weights import unit_weight
from ptq.plan import Plan, WeightPlan


@dataclass(frozen=True)
class Layer:
    """A weighted step and where its learning starts.

    plan: grid, scales and codes. exact: the float weight over the scale, in units of the int8
    weight, float32. Both are in the float weight's layout; the step's is its transpose if `turned`.
    """

    step: Convolve | Gemm
    plan: WeightPlan
    exact: npt.NDArray[np.float32]

    @property
    def turned(self) -> bool:
        """The step multiplies with the transpose."""
        return isinstance(self.step, Gemm) and self.step.transposed

    @property
    def ratio(self) -> npt.NDArray[np.float32]:
        """Codes of the output for one unit of the accumulator: [channels]."""
        return self.step.requantizer.ratio

    def by_channel(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """[channels] in a shape that broadcasts over the weight."""
        return along(values, self.plan)


def learnable_layers(steps: Sequence[Step], units: Sequence[Unit], plan: Plan) -> list[Layer]:
    """The weighted steps among these that the plan has codes for."""
    by_name = {step.name: step for step in steps}
    found = []
    for unit in units:
        step, weight = by_name.get(unit.name), plan.weights.get(unit.name)
        if isinstance(step, Convolve | Gemm) and weight is not None and weight.codes is not None:
            exact = unit_weight(unit) / along(weight.scale, weight)
            found.append(Layer(step, weight, exact.astype(np.float32)))
    return found


def along(values: npt.NDArray[Any], plan: WeightPlan) -> npt.NDArray[np.float64]:
    """[channels] of a weight in a shape that broadcasts over it."""
    shape = [1] * plan.require_codes().ndim
    shape[plan.axis] = -1
    return values.astype(np.float64).reshape(shape)
