"""The table of integer steps: class name -> a function that runs the step on codes in float.

The formulas are those of `ptq.integer.reference`. Steps are plain data and are told apart by the
name of their class, because `execute` and `integer` do not import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ptq.execute.differentiable.convolution import CONVOLVE
from ptq.execute.differentiable.float_graph import run_op
from ptq.execute.differentiable.float_ops import HOST_OPERANDS
from ptq.execute.differentiable.nodes import Node, op_key
from ptq.execute.differentiable.rounding import Quantiser, Rounding, interpolate, rounding_of
from ptq.execute.differentiable.tensors import to_tensor
from ptq.plan import ActivationPlan

if TYPE_CHECKING:
    from ptq.integer.arithmetic import Requantizer
    from ptq.integer.program import (
        Add,
        Apply,
        Convolve,
        Dequantize,
        Gemm,
        Lookup,
        MatMul,
        Mean,
        Multiply,
        Normalize,
        Program,
        Quantize,
        Ref,
        Softmax,
    )


@dataclass
class Scope:
    """Everything that one run knows.

    cache: tensors of the program's own arrays, kept between runs.
    wide: names of steps that need float64.
    """

    program: Program
    codes: dict[str, Tensor]
    raw: dict[str, Tensor]
    overrides: Mapping[str, Tensor]
    quantiser: Quantiser
    dtype: torch.dtype
    device: torch.device
    wide: frozenset[str] = frozenset()
    cache: dict[str, Tensor] = field(default_factory=dict)

    def grid(self, name: str) -> ActivationPlan:
        """The grid of a value's codes."""
        return self.program.codes[name]

    def kind(self, step: str) -> torch.dtype:
        """The type that a step computes in."""
        return torch.float64 if step in self.wide else self.dtype

    def centred(self, step: str, name: str) -> Tensor:
        """code - zero_point, in the step's type."""
        codes, zero_point = self.codes[name].to(self.kind(step)), self.grid(name).zero_point
        return codes - zero_point if zero_point else codes

    def own(self, step: str, part: str, array: Any) -> Tensor:
        """A step's tensor in the step's type: the override if there is one, else its array."""
        return self.stored(step, part, array).to(self.kind(step))

    def stored(self, step: str, part: str, array: Any) -> Tensor:
        """The same in its own type."""
        key = f"{step}.{part}"
        if key in self.overrides:
            return self.overrides[key]
        if key not in self.cache:
            self.cache[key] = to_tensor(np.asarray(array), self.device)
        return self.cache[key]

    def emit(self, name: str, x: Tensor, zero_point: int, low: int, high: int) -> None:
        """codes[name] = zero_point + round(x), clamped: where activations are quantised."""
        codes = self.quantiser(name, rounding_of(x, zero_point, low, high))
        self.codes[name] = codes.to(self.dtype)

    def requantise(self, step: Any, acc: Tensor, axis: int | None = None) -> None:
        """Multiply the accumulator by M / 2^S and emit."""
        requantizer: Requantizer = step.requantizer
        ratio = self.own(step.name, "ratio", requantizer.ratio)
        if ratio.ndim and axis is not None:
            shape = [1] * acc.ndim
            shape[axis] = -1
            ratio = ratio.reshape(shape)
        z = requantizer.zero_point
        self.emit(step.output, acc * ratio, z, requantizer.low, requantizer.high)


def _quantize(s: Scope, step: Quantize) -> None:
    """A tensor divides, not a number: CUDA would multiply by a number's reciprocal."""
    grid = s.grid(step.value)
    x = s.raw[step.value].to(torch.float32) / s.stored(step.name, "scale", grid.scale)
    s.emit(step.value, x, grid.zero_point, grid.low, grid.high)


def _dequantize(s: Scope, step: Dequantize) -> None:
    grid = s.grid(step.value)
    centred = s.codes[step.value].to(torch.float32) - grid.zero_point
    s.raw[step.value] = centred * s.stored(step.name, "scale", grid.scale)


def _convolve(s: Scope, step: Convolve) -> None:
    x = s.centred(step.name, step.input)
    weight = s.own(step.name, "weight", step.weight)
    bias = s.own(step.name, "bias", step.bias)
    n = weight.ndim - 2
    before, after = step.pads[:n], step.pads[n:]
    padding = list(before)
    if before != after:
        sides = zip(reversed(before), reversed(after), strict=True)
        x, padding = functional.pad(x, [p for pair in sides for p in pair]), [0] * n
    acc = CONVOLVE[n](x, weight, bias, step.strides, padding, step.dilations, step.groups)
    s.requantise(step, acc, 1)


def _gemm(s: Scope, step: Gemm) -> None:
    acc = torch.matmul(s.centred(step.name, step.input), s.own(step.name, "weight", step.weight))
    if step.bias is not None or f"{step.name}.bias" in s.overrides:
        acc = acc + s.own(step.name, "bias", step.bias)
    s.requantise(step, acc, -1)


def _matmul(s: Scope, step: MatMul) -> None:
    s.requantise(step, torch.matmul(s.centred(step.name, step.a), s.centred(step.name, step.b)))


def _add(s: Scope, step: Add) -> None:
    """Both ratios are M / 2^S, so each product and the sum are exact."""
    shares = np.asarray(step.multipliers, np.float64) * step.requantizer.ratio
    ratio = s.own(step.name, "ratio", shares)
    x = s.centred(step.name, step.a) * ratio[0] + s.centred(step.name, step.b) * ratio[1]
    r = step.requantizer
    s.emit(step.output, x, r.zero_point, r.low, r.high)


def _multiply(s: Scope, step: Multiply) -> None:
    s.requantise(step, s.centred(step.name, step.a) * s.centred(step.name, step.b))


def _mean(s: Scope, step: Mean) -> None:
    s.requantise(step, s.centred(step.name, step.input).sum(step.axes, step.keepdims))


def _lookup(s: Scope, step: Lookup) -> None:
    """An entry that is already a code rounds to itself; a learned table need not hold codes.

    Going to the nearest level is rounding, and has its gradient.
    """
    if step.function == "levels":
        _snap(s, step)
        return
    table = s.own(step.name, "table", step.table.astype(np.int32))  # torch has no uint16
    x = interpolate(table, s.codes[step.input].to(table.dtype), step.axis)
    s.emit(step.output, x, 0, 0, np.iinfo(step.table.dtype).max)


def _snap(s: Scope, step: Lookup) -> None:
    x = s.codes[step.input]
    table = s.stored(step.name, "levels", step.table.astype(np.float32)).to(x.dtype)
    nearest = table[x.detach().round().to(torch.int64)]
    rounding = Rounding(lambda: x, lambda: x + (nearest - x).detach())
    s.codes[step.output] = s.quantiser(step.output, rounding)


def _softmax(s: Scope, step: Softmax) -> None:
    """float64 holds both sides of the one division exactly; the gradient is softmax's own."""
    x, scale = s.codes[step.input].to(torch.float64), float(s.grid(step.input).scale)
    keep = _read(s, step.keep, on_host=False)
    table = s.stored(step.name, "exp_table", step.exp_table).to(torch.float64)
    kept = x.detach() if keep is None else x.detach() * keep
    distance = kept.amax(step.axis, keepdim=True) - x
    point = distance.detach()
    e = interpolate(table, point.clamp(min=0)) * torch.exp(scale * (point - distance))
    e = e if keep is None else e * keep
    total = e.sum(step.axis, keepdim=True).clamp(min=1)
    s.emit(step.output, e * step.numerator / total, 0, 0, step.high)


def _normalize(s: Scope, step: Normalize) -> None:
    """float64 holds everything exactly; floors pass the gradient of what they cut."""
    d = s.codes[step.input].to(torch.float64) - s.grid(step.input).zero_point
    n = len(step.gain)
    if step.centred:
        d = d * 2.0**step.mean_bits
        total = d.sum(-1, keepdim=True)
        mean = total / n
        d = d - (mean + (((2 * total + n) / (2 * n)).floor() - mean).detach())
    square = (d * d).sum(-1, keepdim=True)
    root = torch.sqrt(square * 4.0**step.shift + step.epsilon).clamp(min=1)
    inverse = (2.0**step.inverse_bits / root.detach().floor()).floor()
    inverse = inverse * (root.detach() / root)
    unit = 2.0 ** -float(step.requantizer.shift)
    gain = s.stored(step.name, "gain", step.gain).to(torch.float64) * unit
    offset = s.stored(step.name, "offset", step.offset).to(torch.float64) * unit
    r = step.requantizer
    s.emit(step.output, d * inverse * gain + offset, r.zero_point, r.low, r.high)


def _apply(s: Scope, step: Apply) -> None:
    key = op_key(step.op_type, step.domain)
    attributes = {attr.name: attr.value for attr in step.attributes}
    node = Node(step.name, key, attributes, s.program.opset, len(step.outputs))
    host = HOST_OPERANDS.get(key, frozenset())
    operands = [_read(s, ref, i in host) for i, ref in enumerate(step.inputs)]
    for ref, result in zip(step.outputs, run_op(node, operands), strict=False):
        if ref.name:
            (s.codes if ref.codes else s.raw)[ref.name] = result.to(s.device)


def _read(s: Scope, ref: Ref | None, on_host: bool) -> Tensor | None:
    """An operand of an Apply step."""
    if ref is None or not ref.name:
        return None
    if ref.codes:
        return s.codes[ref.name]
    if ref.name in s.raw:
        return s.raw[ref.name]
    key = f"constant {'on host ' if on_host else ''}{ref.name}"
    if key not in s.cache:
        constant = s.program.constants[ref.name]
        array = constant if isinstance(constant, np.ndarray) else constant.numpy()
        s.cache[key] = to_tensor(np.asarray(array), "cpu" if on_host else s.device)
    return s.cache[key]


INTEGER_OPS: dict[str, Callable[[Scope, Any], None]] = {
    "Add": _add,
    "Apply": _apply,
    "Convolve": _convolve,
    "Dequantize": _dequantize,
    "Gemm": _gemm,
    "Lookup": _lookup,
    "MatMul": _matmul,
    "Mean": _mean,
    "Multiply": _multiply,
    "Normalize": _normalize,
    "Quantize": _quantize,
    "Softmax": _softmax,
}

LEARNABLE: dict[str, frozenset[str]] = {
    "Add": frozenset({"ratio"}),
    "Convolve": frozenset({"weight", "bias", "ratio"}),
    "Dequantize": frozenset({"scale"}),
    "Gemm": frozenset({"weight", "bias", "ratio"}),
    "Lookup": frozenset({"table"}),
    "MatMul": frozenset({"ratio"}),
    "Mean": frozenset({"ratio"}),
    "Multiply": frozenset({"ratio"}),
    "Quantize": frozenset({"scale"}),
}
"""What may be overridden in a step."""
