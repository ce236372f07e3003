"""Lower: outline + plan -> the integer program.

One small function a kind of unit, in a table; values are quantised and dequantised where codes
meet raw values. No numerics are decided here beyond the short multipliers of the contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.integer import claims
from ptq.integer.arithmetic import (
    INT32_LIMIT,
    Requantizer,
    exact_shift,
    onnx_ratio,
    short_multiplier,
)
from ptq.integer.outline import Island, Outline, Unit, _reads
from ptq.integer.program import (
    Add,
    Apply,
    Boundary,
    Certificate,
    Convolve,
    Dequantize,
    Gemm,
    Lookup,
    MatMul,
    Mean,
    Multiply,
    Program,
    Quantize,
    Ref,
    Softmax,
    Step,
)
from ptq.integer.weights import evaluate_table, table_axis, unit_axis, unit_bias
from ptq.plan import ActivationPlan, Plan

EXP_BITS = 15


@dataclass
class _Lowering:
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

    def keep_constant(self, value: ir.Value) -> None:
        """Keep a raw constant operand."""
        self.constants[str(value.name)] = value.const_value

    def certify(
        self,
        step: str,
        weight: npt.NDArray[np.int8],
        x: ActivationPlan,
        bias: npt.NDArray[np.int64],
        requantizer: Requantizer,
        note: str = "",
    ) -> None:
        """Prove the accumulator's bound: weight [channels, k], bias [channels]."""
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
        largest = np.sort(np.abs(rows), axis=1)[:, -2:].sum(1).max(initial=0)
        limit = exact_shift(requantizer.zero_point, requantizer.low, requantizer.high)
        exact = bool((requantizer.shift <= limit).all())
        safe = bool(255 * largest < 2**15)
        self.certificates.append(Certificate(step, bound, exact, safe, note))


def lower(model: ir.Model, outline: Outline, plan: Plan) -> Program:
    """The integer program of a model under a finished plan.

    Raises:
        UnsupportedModelError: an accumulator would not fit int32, or the plan lacks a tensor.
    """
    state = _Lowering(model, outline, plan)
    state.raw |= {str(v.name) for v in model.graph.inputs}
    for item in outline.items:
        if isinstance(item, Unit):
            LOWER[item.kind](state, item)
        else:
            _apply_raw(state, item)
    for value in model.graph.outputs:
        name = str(value.name)
        if value.const_value is not None:
            state.keep_constant(value)
        elif name in state.codes:
            state.need_raw(name)
    return Program(
        inputs=tuple(_boundary(v) for v in model.graph.inputs),
        outputs=tuple(_boundary(v) for v in model.graph.outputs),
        steps=tuple(state.steps),
        codes=state.codes,
        constants=state.constants,
        code_constants=state.code_constants,
        certificates=tuple(state.certificates),
        opset=model.opset_imports.get("", 21),
    )


def _boundary(value: ir.Value) -> Boundary:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return Boundary(str(value.name), value.dtype or ir.DataType.FLOAT, shape)


def _requantizer(
    ratio: npt.ArrayLike, y: ActivationPlan, spare_bits: int = 0, bits: int = 24
) -> Requantizer:
    limit = exact_shift(y.zero_point, y.low, y.high) - spare_bits
    multiplier, shift = short_multiplier(np.asarray(ratio, np.float64), limit, bits)
    return Requantizer(multiplier, shift, y.zero_point, y.low, y.high)


def _integer_bias(state: _Lowering, unit: Unit, scale: npt.NDArray[np.float64]) -> Any:
    bias = state.plan.biases.get(unit.name)
    bias = unit_bias(unit) if bias is None else bias
    return np.clip(np.rint(bias / scale), -(2**30), 2**30).astype(np.int32)


def _conv(state: _Lowering, unit: Unit) -> None:
    x, y, w = (
        state.need_codes(unit.inputs[0]),
        state.grid(unit.output),
        _weights(state, unit),
    )
    weight = w.decode()
    bias = _integer_bias(state, unit, w.scale.astype(np.float64) * float(x.scale))
    requantizer = _requantizer(onnx_ratio(x.scale, w.scale, y.scale), y)
    rows = weight.reshape(len(weight), -1)
    state.certify(unit.name, rows, x, bias.astype(np.int64), requantizer)
    n = weight.ndim - 2
    ones = (1,) * n
    state.write(unit.output)
    state.steps.append(
        Convolve(
            unit.name, unit.inputs[0], unit.output, weight, bias, requantizer,
            strides=claims.integers(unit.node, "strides", ones),
            dilations=claims.integers(unit.node, "dilations", ones),
            pads=claims.integers(unit.node, "pads", (0,) * 2 * n),
            groups=claims.integer(unit.node, "group", 1), weight_scale=w.scale, stored=w,
        )
    )  # fmt: skip


def _weights(state: _Lowering, unit: Unit) -> Any:
    if unit.name not in state.plan.weights:
        raise UnsupportedModelError(f"{unit.name}: the plan has no weights for this layer")
    return state.plan.weights[unit.name]


def _gemm(state: _Lowering, unit: Unit) -> None:
    x, y, w = (
        state.need_codes(unit.inputs[0]),
        state.grid(unit.output),
        _weights(state, unit),
    )
    transposed = unit_axis(unit) == 0
    weight = w.decode()
    weight = np.ascontiguousarray(weight.T) if transposed else weight
    has_bias = unit.bias is not None or unit.name in state.plan.biases
    bias = _integer_bias(state, unit, w.scale.astype(np.float64) * float(x.scale))
    requantizer = _requantizer(onnx_ratio(x.scale, w.scale, y.scale), y)
    state.certify(unit.name, weight.T, x, bias.astype(np.int64), requantizer)
    state.write(unit.output)
    state.steps.append(
        Gemm(
            unit.name, unit.inputs[0], unit.output, weight, bias if has_bias else None,
            requantizer, weight_scale=w.scale, stored=w, transposed=transposed,
        )
    )  # fmt: skip


def _matmul(state: _Lowering, unit: Unit) -> None:
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    requantizer = _requantizer(onnx_ratio(a.scale, np.asarray(b.scale), y.scale), y)
    state.steps.append(MatMul(unit.name, unit.inputs[0], unit.inputs[1], unit.output, requantizer))
    inner = claims.static_dim(unit.node.inputs[0], -1) if unit.node.inputs[0] else None
    reach = [max(g.high - g.zero_point, g.zero_point - g.low) for g in (a, b)]
    bound = reach[0] * reach[1] * (inner or 1)
    note = "" if inner else "inner size is dynamic: the bound is for one element of it"
    state.certificates.append(Certificate(unit.name, bound, True, True, note))


def _add(state: _Lowering, unit: Unit) -> None:
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    sign = -1 if unit.node.op_type == "Sub" else 1
    ratios = float(a.scale) / float(y.scale), sign * float(b.scale) / float(y.scale)
    reach = 256.0 * (1 + abs(ratios[0]) + abs(ratios[1]))
    shift = 0
    while reach * 2.0 ** (shift + 1) < 2**24 and shift < 20:
        shift += 1
    first, second = (round(r * 2**shift) for r in ratios)
    requantizer = Requantizer(
        np.array(1, np.int64), np.array(shift, np.int64), y.zero_point, y.low, y.high
    )
    state.steps.append(
        Add(
            unit.name,
            unit.inputs[0],
            unit.inputs[1],
            unit.output,
            (first, second),
            requantizer,
        )
    )
    bound = 255 * (abs(first) + abs(second))
    state.certificates.append(Certificate(unit.name, bound, True, True))


def _multiply(state: _Lowering, unit: Unit) -> None:
    a, b = (state.need_codes(name) for name in unit.inputs)
    y = state.write(unit.output)
    ratio = float(a.scale) * float(b.scale) / float(y.scale)
    requantizer = _requantizer(ratio, y, spare_bits=1)
    state.steps.append(
        Multiply(unit.name, unit.inputs[0], unit.inputs[1], unit.output, requantizer)
    )
    state.certificates.append(Certificate(unit.name, 255 * 255, True, True))


def _mean(state: _Lowering, unit: Unit) -> None:
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    axes = claims.reduced_axes(unit.node) or ()
    count = math.prod(claims.static_dim(unit.node.inputs[0], a) or 1 for a in axes)
    divisor = 1 if unit.node.op_type == "ReduceSum" else count
    bits = 24 - max(int(np.ceil(np.log2(count))), 0)
    requantizer = _requantizer(float(x.scale) / (divisor * float(y.scale)), y, bits=bits)
    keep = bool(claims.integer(unit.node, "keepdims", 1))
    state.steps.append(Mean(unit.name, unit.inputs[0], unit.output, axes, keep, count, requantizer))
    state.certificates.append(Certificate(unit.name, 255 * count, True, True))


def _window(state: _Lowering, unit: Unit) -> None:
    """Average pooling is a depthwise convolution with weights of one."""
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    kernel = claims.integers(unit.node, "kernel_shape")
    channels, n, size = (
        claims.static_dim(unit.node.inputs[0], 1),
        len(kernel),
        np.prod(kernel),
    )
    weight = np.ones((channels or 1, 1, *kernel), np.int8)
    scale = np.full(len(weight), 1 / size, np.float32)
    requantizer = _requantizer(onnx_ratio(x.scale, scale, y.scale), y)
    bias = np.zeros(len(weight), np.int32)
    state.certify(
        unit.name,
        weight.reshape(len(weight), -1),
        x,
        bias.astype(np.int64),
        requantizer,
    )
    state.steps.append(
        Convolve(
            unit.name, unit.inputs[0], unit.output, weight, bias, requantizer,
            strides=claims.integers(unit.node, "strides", (1,) * n), dilations=(1,) * n,
            pads=claims.integers(unit.node, "pads", (0,) * 2 * n), groups=len(weight),
            weight_scale=scale,
        )
    )  # fmt: skip


def _lookup(state: _Lowering, unit: Unit) -> None:
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    points = x.dequantize(np.arange(256).clip(x.low, x.high).astype(np.uint8))
    values = evaluate_table(unit, points, dict(state.model.opset_imports))
    values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    axis = table_axis(unit)
    function = "+".join(node.op_type for node in unit.nodes)
    table = y.quantize(values)
    state.steps.append(
        Lookup(unit.name, unit.inputs[0], unit.output, table, axis or None, function)
    )


def _softmax(state: _Lowering, unit: Unit) -> None:
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    distance = np.arange(256) * float(x.scale)
    table = np.rint(2.0**EXP_BITS * np.exp(-distance)).astype(np.int32)
    axis = claims.integer(unit.node, "axis", -1)
    numerator = round(1 / float(y.scale))
    state.steps.append(
        Softmax(unit.name, unit.inputs[0], unit.output, axis, table, numerator, y.high)
    )


def _concat(state: _Lowering, unit: Unit) -> None:
    y = state.write(unit.output)
    refs: list[Ref] = []
    for position, name in enumerate(unit.inputs):
        x = state.need_codes(name)
        if (x.scale, x.zero_point) != (y.scale, y.zero_point):
            name = _requantize(state, f"{unit.name}/{position}", name, x, y)
        refs.append(Ref(name, codes=True))
    attributes = tuple(unit.node.attributes.values())
    output = (Ref(unit.output, codes=True),)
    state.steps.append(Apply(unit.name, "Concat", "", tuple(refs), output, attributes))


def _requantize(
    state: _Lowering, name: str, source: str, x: ActivationPlan, y: ActivationPlan
) -> str:
    """A table that takes codes of one grid to another; returns the new value's name."""
    values = x.dequantize(np.arange(256).clip(x.low, x.high).astype(np.uint8))
    state.codes[name] = y
    state.steps.append(Lookup(name, source, name, y.quantize(values), None, "requantize"))
    return name


def _move(state: _Lowering, unit: Unit) -> None:
    x = state.need_codes(unit.inputs[0])
    refs: list[Ref | None] = [Ref(unit.inputs[0], codes=True)]
    op_type, node = unit.node.op_type, unit.node
    attributes = tuple(node.attributes.values())
    for position, value in enumerate(node.inputs[1:], 1):
        if value is None:
            refs.append(None)
        elif op_type == "Pad" and position == 2:
            refs.append(_code_constant(state, f"{unit.name}/value", x.quantize(_number(value))))
        else:
            refs.append(_raw_operand(state, value))
    if op_type == "Pad" and len(refs) < 3:
        refs.append(_code_constant(state, f"{unit.name}/value", x.quantize(np.float32(0))))
    if op_type == "GlobalMaxPool":
        size = claims.rank(node.inputs[0]) or 4
        state.constants[f"{unit.name}/axes"] = np.arange(2, size, dtype=np.int64)
        op_type, refs = "ReduceMax", [*refs, Ref(f"{unit.name}/axes", codes=False)]
    for name in unit.outputs:
        state.write(name)
    outputs = tuple(Ref(name, codes=True) for name in unit.outputs)
    state.steps.append(Apply(unit.name, op_type, "", tuple(refs), outputs, attributes))


def _number(value: ir.Value) -> npt.NDArray[np.float32]:
    array = claims.constant(value)
    return np.zeros((), np.float32) if array is None else array.astype(np.float32).reshape(())


def _code_constant(state: _Lowering, name: str, code: npt.NDArray[np.uint8]) -> Ref:
    state.constants[name] = np.asarray(code, np.uint8)
    return Ref(name, codes=False)


def _raw_operand(state: _Lowering, value: ir.Value) -> Ref:
    name = str(value.name)
    if value.const_value is not None:
        state.keep_constant(value)
    elif name in state.codes:
        state.need_raw(name)
    return Ref(name, codes=False)


def _order(state: _Lowering, unit: Unit) -> None:
    state.need_codes(unit.inputs[0])
    outputs = tuple(Ref(name, codes=False) for name in unit.outputs)
    state.raw |= set(unit.outputs)
    attributes = tuple(unit.node.attributes.values())
    inputs = (Ref(unit.inputs[0], codes=True),)
    state.steps.append(Apply(unit.name, unit.node.op_type, "", inputs, outputs, attributes))


def _apply_raw(state: _Lowering, island: Island) -> None:
    """A float island's node, or shape arithmetic, as it is."""
    node = island.node
    shape_only = island.op_type in ("Shape", "Size") and island.reason is None
    for value in _reads(node):
        if value.const_value is not None:
            state.keep_constant(value)
        elif not shape_only and value.name in state.codes:
            state.need_raw(str(value.name))
    refs = tuple(_operand(state, v, shape_only) for v in node.inputs)
    outputs = tuple(Ref(str(v.name), codes=False) for v in node.outputs)
    state.raw |= {ref.name for ref in outputs}
    attributes = tuple(node.attributes.values())
    state.steps.append(
        Apply(
            island.name,
            node.op_type,
            node.domain,
            refs,
            outputs,
            attributes,
            island.reason,
        )
    )


def _operand(state: _Lowering, value: ir.Value | None, shape_only: bool) -> Ref | None:
    if value is None:
        return None
    name = str(value.name)
    return Ref(name, codes=shape_only and name in state.codes and name not in state.raw)


LOWER: dict[str, Callable[[_Lowering, Unit], None]] = {
    "conv": _conv,
    "gemm": _gemm,
    "matmul": _matmul,
    "add": _add,
    "multiply": _multiply,
    "mean": _mean,
    "window": _window,
    "lookup": _lookup,
    "softmax": _softmax,
    "concat": _concat,
    "move": _move,
    "order": _order,
}
