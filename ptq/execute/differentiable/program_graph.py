"""Runs steps of the integer program in torch: the simulation that rounding is learned in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ptq.errors import UnsupportedModelError, UsageError
from ptq.execute.differentiable.float_ops import FLOAT_OPS
from ptq.execute.differentiable.integer_ops import INTEGER_OPS, LEARNABLE, Scope
from ptq.execute.differentiable.nodes import op_key
from ptq.execute.differentiable.rounding import Quantiser, hard
from ptq.execute.differentiable.tensors import to_tensor

if TYPE_CHECKING:
    from ptq.integer.program import Program, Step

EXACT_FLOAT32 = 2**24
"""Integers below this are exact in float32."""


@dataclass(frozen=True)
class ProgramValues:
    """Tensors by value name: codes (integer-valued floats) and raw values as the model has them."""

    codes: Mapping[str, Tensor]
    raw: Mapping[str, Tensor]


class ProgramGraph:
    """Steps of an integer program on codes held in floating point, differentiable.

        codes = zero_point + round(clamp(accumulator * M / 2^S))

    Rounding passes gradients straight through, clamping stops them outside its bounds, a table's
    gradient is its slope. With `exact`, outputs equal `ptq.integer.reference` code for code: steps
    whose accumulator can leave the integers that float32 holds run in float64, and so does
    everything that multiplies on a GPU, whose float32 algorithms may not be exact on integers.

    `run` takes overrides, keyed 'step.part', for what is being learned: 'conv1.weight' (the step's
    layout, int8 units, any real numbers), 'conv1.bias' (accumulator units), 'conv1.ratio' (M / 2^S,
    per channel; of Add: one for each operand), 'x/quantize.scale', 'gelu.table' (code units).

    Same bits twice: forward passes of integers are exact in any order. Gradients are sums of reals,
    whose split depends on the number of threads: call torch.set_num_threads with a fixed number (1
    is fastest when blocks run in parallel processes) and torch.use_deterministic_algorithms(True).
    """

    def __init__(
        self,
        program: Program,
        steps: Sequence[Step] | None = None,
        *,
        outputs: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
        exact: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare steps of `program` (default: all), in its order.

        outputs: names of values to keep; none keeps every one. dtype: of codes and accumulators;
        raw values keep the model's types, so scales are applied in float32 as in the reference.

        Raises:
            UnsupportedModelError: a node among the steps is not in the float table.
            UsageError: no step makes one of the outputs.
        """
        self._program = program
        self._steps = program.steps if steps is None else tuple(steps)
        self._outputs = frozenset(outputs)
        self._dtype = dtype
        self._device = torch.device(device)
        self._cache: dict[str, Tensor] = {}
        self._names = [_names(step) for step in self._steps]
        _require_operators(self._steps)
        if unknown := self._outputs - {name for names in self._names for name in names}:
            raise UsageError(f"outputs {', '.join(sorted(unknown))}: no step has these values")
        self._wide = self._wide_steps() if exact else frozenset()
        self._release = _last_uses(self._names)
        self._learnable = {
            f"{step.name}.{part}"
            for step in self._steps
            for part in LEARNABLE.get(type(step).__name__, ())
        }

    def run(
        self,
        codes: Mapping[str, Tensor] | None = None,
        raw: Mapping[str, Tensor] | None = None,
        overrides: Mapping[str, Tensor] | None = None,
        quantiser: Quantiser = hard,
    ) -> ProgramValues:
        """Run the steps from codes and raw values by name.

        quantiser: called wherever an activation is rounded; see `rounding.drop_quantization`.

        Raises:
            UsageError: an override that no step has, or an input that is missing.
        """
        overrides = overrides or {}
        if unknown := overrides.keys() - self._learnable:
            raise UsageError(
                f"override {', '.join(sorted(unknown))}: wanted 'step.part' with a part of "
                f"{', '.join(f'{kind}: {sorted(parts)}' for kind, parts in LEARNABLE.items())}"
            )
        given = {name: x.to(self._device, self._dtype) for name, x in (codes or {}).items()}
        scope = Scope(
            self._program,
            {**self._constant_codes(), **given},
            {name: x.to(self._device) for name, x in (raw or {}).items()},
            overrides,
            quantiser,
            self._dtype,
            self._device,
            self._wide,
            self._cache,
        )
        for step, release in zip(self._steps, self._release, strict=True):
            try:
                INTEGER_OPS[type(step).__name__](scope, step)
            except KeyError as error:
                raise UsageError(f"{step.name}: its operand {error} is missing") from error
            for name in release - self._outputs if self._outputs else ():
                scope.codes.pop(name, None)
                scope.raw.pop(name, None)
        return ProgramValues(scope.codes, scope.raw)

    def codes_of(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Codes as this graph wants them, from arrays of codes (uint8) by name."""
        kind = self._dtype
        return {n: to_tensor(np.asarray(a)).to(self._device, kind) for n, a in values.items()}

    def own(self, key: str) -> Tensor:
        """The program's own tensor for an override 'step.part', float32: where learning starts.

        Raises:
            UsageError: no step has it.
        """
        for step in self._steps:
            if key in self._learnable and key.startswith(f"{step.name}."):
                part = key.removeprefix(f"{step.name}.")
                if part in LEARNABLE.get(type(step).__name__, ()):
                    array = _own_array(self._program, step, part)
                    return to_tensor(np.asarray(array, np.float32), self._device)
        raise UsageError(f"override {key}: no step has it")

    def _constant_codes(self) -> dict[str, Tensor]:
        found = {}
        for name, array in self._program.code_constants.items():
            key = f"code {name}"
            if key not in self._cache:
                self._cache[key] = to_tensor(array.astype(np.int32), self._device).to(self._dtype)
            found[name] = self._cache[key]
        return found

    def _wide_steps(self) -> frozenset[str]:
        """Names of steps that float32 cannot hold."""
        unproved = {c.step for c in self._program.certificates if not c.exact}
        on_gpu = self._device.type != "cpu"
        return frozenset(
            step.name
            for step in self._steps
            if on_gpu
            or step.name in unproved
            or self._sixteen(step)
            or _reach(step) >= EXACT_FLOAT32
        )

    def _sixteen(self, step: Step) -> bool:
        """True if the step reads or writes codes of 16 bits."""
        grids = [self._program.codes.get(name) for name in _names(step)]
        return any(grid is not None and grid.dtype is not np.uint8 for grid in grids)


def _reach(step: Any) -> float:
    """The largest magnitude that a partial sum of the step's accumulator can have."""
    kind = type(step).__name__
    if kind == "MatMul":
        return float("inf")  # its inner size may be dynamic
    if kind == "Mean":
        return float(255 * step.count)
    if kind not in ("Convolve", "Gemm"):
        return 0.0
    axes = tuple(range(1, step.weight.ndim)) if kind == "Convolve" else (0,)
    sums = 255 * np.abs(step.weight.astype(np.int64)).sum(axis=axes)
    bias = 0 if step.bias is None else np.abs(step.bias.astype(np.int64))
    reach: float = (sums + bias).max(initial=0)
    return reach


def _own_array(program: Program, step: Any, part: str) -> Any:
    """The array behind 'step.part'."""
    kind = type(step).__name__
    if part == "scale":
        return program.codes[step.value].scale
    if kind == "Add":
        return np.asarray(step.multipliers, np.float64) * step.requantizer.ratio
    if part == "ratio":
        return step.requantizer.ratio
    if part == "bias" and step.bias is None:
        return np.zeros(step.weight.shape[-1], np.float32)
    return getattr(step, part)


def _names(step: Any) -> frozenset[str]:
    """Every value that a step reads or writes."""
    fields = ("value", "input", "a", "b", "output")
    found = {getattr(step, name) for name in fields if hasattr(step, name)}
    keep = getattr(step, "keep", None)
    refs = (keep, *getattr(step, "inputs", ()), *getattr(step, "outputs", ()))
    return frozenset(found | {ref.name for ref in refs if ref is not None and ref.name})


def _last_uses(names: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """For every step, the values that no later step has."""
    seen: set[str] = set()
    release = []
    for found in reversed(names):
        release.append(found - seen)
        seen |= found
    return release[::-1]


def _require_operators(steps: Sequence[Any]) -> None:
    applied = [step for step in steps if type(step).__name__ == "Apply"]
    missing = {op_key(step.op_type, step.domain) for step in applied} - FLOAT_OPS.keys()
    if missing:
        raise UnsupportedModelError(
            f"differentiable executor: no {', '.join(sorted(missing))}; leave these nodes out of "
            "the block that is learned"
        )
