"""Lower units that move codes, and nodes that stay as they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.grid import Codes
from ptq.integer import claims
from ptq.integer.lower_embedding import is_wide_embedding, lower_embedding
from ptq.integer.lowering import Lowering
from ptq.integer.program import Apply, Ref
from ptq.integer.units import Island, Unit, operands


def lower_move(state: Lowering, unit: Unit) -> None:
    """Data movement: the same node on codes."""
    if is_wide_embedding(state, unit):
        lower_embedding(state, unit)
        return
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
            refs.append(state.raw_operand(value))
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


def _code_constant(state: Lowering, name: str, code: Codes) -> Ref:
    state.constants[name] = np.asarray(code)
    return Ref(name, codes=False)


def lower_order(state: Lowering, unit: Unit) -> None:
    """ArgMax and ArgMin: codes are ordered like their values."""
    state.need_codes(unit.inputs[0])
    outputs = tuple(Ref(name, codes=False) for name in unit.outputs)
    state.raw |= set(unit.outputs)
    attributes = tuple(unit.node.attributes.values())
    inputs = (Ref(unit.inputs[0], codes=True),)
    state.steps.append(Apply(unit.name, unit.node.op_type, "", inputs, outputs, attributes))


def lower_island(state: Lowering, island: Island) -> None:
    """A float island's node, or shape arithmetic, as it is."""
    node = island.node
    shape_only = island.op_type in ("Shape", "Size") and island.reason is None
    for value in operands(node):
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


def _operand(state: Lowering, value: ir.Value | None, shape_only: bool) -> Ref | None:
    if value is None:
        return None
    name = str(value.name)
    return Ref(name, codes=shape_only and name in state.codes and name not in state.raw)
