"""The program under construction: what every lowering function reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.grid import Grid
from ptq.integer import claims
from ptq.integer.arithmetic import INT32_LIMIT, Requantizer, exact_shift
from ptq.integer.pairs import Pairs
from ptq.integer.program import LEVELS, Certificate, Dequantize, Lookup, Quantize, Ref, Step
from ptq.integer.units import Outline
from ptq.plan import ActivationPlan, Plan


@dataclass
class Lowering:
    """The program under construction."""

    model: ir.Model
    outline: Outline
    plan: Plan
    steps: list[Step] = field(default_factory=list)
    codes: dict[str, ActivationPlan] = field(default_factory=dict)
    raw: set[str] = field(default_factory=set)
    constants: dict[str, Any] = field(default_factory=dict)
    code_constants: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    certificates: list[Certificate] = field(default_factory=list)

    def grid(self, name: str) -> ActivationPlan:
        """The ActivationPlan of a tensor's codes."""
        site = self.outline.site(name)
        if site not in self.plan.activations:
            raise UnsupportedModelError(f"{site}: the plan has no grid for this tensor")
        return self.plan.activations[site]

    def need_codes(self, name: str) -> ActivationPlan:
        """Make sure that codes[name] exists when the next step runs."""
        grid = self.grid(name)
        if name in self.outline.constants and name not in self.codes:
            array = claims.constant(self.outline.constants[name])
            self.code_constants[name] = grid.quantize(np.asarray(array, np.float32))
        elif name not in self.codes:
            self.steps.append(Quantize(f"{name}/quantize", name))
        self.codes[name] = grid
        return grid

    def need_raw(self, name: str) -> None:
        """Make sure that raw[name] exists when the next step runs."""
        if name not in self.raw:
            self.steps.append(Dequantize(f"{name}/dequantize", name))
            self.raw.add(name)

    def write(self, name: str) -> ActivationPlan:
        """Declare that the next step writes codes[name]."""
        self.codes[name] = self.grid(name)
        return self.codes[name]

    def snap(self) -> None:
        """Take codes that were just requantised to the nearest levels of their grid."""
        last: Any = self.steps[-1] if self.steps else None
        if not (hasattr(last, "requantizer") and self.codes[last.output].levels):
            return
        output, fine = last.output, f"{last.output}/before levels"
        grid = self.codes[output]
        self.steps[-1] = replace(last, output=fine)
        self.codes[fine] = replace(grid, grid=Grid(), levels=())
        self.steps.append(Lookup(f"{last.name}/levels", fine, output, grid.table, None, LEVELS))

    def keep_constant(self, value: ir.Value) -> None:
        """Keep a raw constant operand."""
        self.constants[str(value.name)] = value.const_value

    def raw_operand(self, value: ir.Value) -> Ref:
        """A raw value, or constant, as an operand of the next step."""
        name = str(value.name)
        if value.const_value is not None:
            self.keep_constant(value)
        elif name in self.codes:
            self.need_raw(name)
        return Ref(name, codes=False)

    def certify(
        self,
        step: str,
        weight: npt.NDArray[np.int8],
        x: ActivationPlan,
        bias: npt.NDArray[np.int64],
        requantizer: Requantizer,
        pairs: Pairs | None = None,
    ) -> None:
        """Prove the accumulator's bound: weight [channels, k], bias [channels].

        pairs: the weights that may be added in 16 bits, None if there are none.
        """
        rows = weight.astype(np.int64)
        up, down = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
        top, bottom = x.high - x.zero_point, x.low - x.zero_point
        highest = up * top + down * bottom + bias
        lowest = up * bottom + down * top + bias
        bound = int(max(np.abs(highest).max(initial=0), np.abs(lowest).max(initial=0)))
        if bound >= INT32_LIMIT:
            raise UnsupportedModelError(
                f"{step}: its accumulator can reach {bound}; int32 holds less than {INT32_LIMIT}: "
                "use fewer weight bits here or --exclude it"
            )
        limit = exact_shift(requantizer.zero_point, requantizer.low, requantizer.high)
        exact = bool((requantizer.shift <= limit).all())
        safe = pairs is None or pairs.safe(rows)
        self.certificates.append(Certificate(step, bound, exact, safe))
