"""Lower units that map codes to codes: elementwise functions, softmax, concatenation."""

from __future__ import annotations

import numpy as np

from ptq.integer import claims
from ptq.integer.compounds import MaskedSoftmax
from ptq.integer.lowering import Lowering
from ptq.integer.program import Apply, Lookup, Ref, Softmax
from ptq.integer.units import Unit
from ptq.integer.weights import evaluate_table, table_axis
from ptq.plan import ActivationPlan

EXP_BITS = 15


def lower_lookup(state: Lowering, unit: Unit) -> None:
    """A 256-entry table of what the float nodes compute."""
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


def lower_softmax(state: Lowering, unit: Unit) -> None:
    """A softmax: a table of exponentials and one exact division."""
    x = state.need_codes(unit.inputs[0])
    y = state.write(unit.output)
    distance = np.arange(256) * float(x.scale)
    table = np.rint(2.0**EXP_BITS * np.exp(-distance)).astype(np.int32)
    axis = claims.integer(unit.node, "axis", -1)
    numerator = round(1 / float(y.scale))
    keep = None
    if isinstance(unit.compound, MaskedSoftmax):
        axis, keep = -1, state.raw_operand(unit.compound.keep)
    state.steps.append(
        Softmax(unit.name, unit.inputs[0], unit.output, axis, table, numerator, y.high, keep)
    )


def lower_concat(state: Lowering, unit: Unit) -> None:
    """A concatenation; operands on another grid are requantised by a table first."""
    y = state.write(unit.output)
    refs: list[Ref] = []
    for position, name in enumerate(unit.inputs):
        x = state.need_codes(name)
        if (x.scale, x.zero_point, x.levels) != (y.scale, y.zero_point, y.levels):
            name = _requantize(state, f"{unit.name}/{position}", name, x, y)
        refs.append(Ref(name, codes=True))
    attributes = tuple(unit.node.attributes.values())
    output = (Ref(unit.output, codes=True),)
    state.steps.append(Apply(unit.name, "Concat", "", tuple(refs), output, attributes))


def _requantize(
    state: Lowering, name: str, source: str, x: ActivationPlan, y: ActivationPlan
) -> str:
    """A table that takes codes of one grid to another; returns the new value's name."""
    values = x.dequantize(np.arange(256).clip(x.low, x.high).astype(np.uint8))
    state.codes[name] = y
    state.steps.append(Lookup(name, source, name, y.quantize(values), None, "requantize"))
    return name
