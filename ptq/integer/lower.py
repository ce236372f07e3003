"""Lower: outline + plan -> the integer program.

One small function a kind of unit, in a table; values are quantised and dequantised where codes
meet raw values. No numerics are decided here beyond the short multipliers of the contract.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ptq.integer.lower_arithmetic import (
    lower_add,
    lower_conv,
    lower_gemm,
    lower_matmul,
    lower_mean,
    lower_multiply,
    lower_window,
)
from ptq.integer.lower_movement import lower_island, lower_move, lower_order
from ptq.integer.lower_norm import lower_norm
from ptq.integer.lower_tables import lower_concat, lower_lookup, lower_softmax
from ptq.integer.lowering import Lowering
from ptq.integer.program import Boundary, Program
from ptq.integer.units import Outline, Unit
from ptq.plan import Plan


def lower(model: ir.Model, outline: Outline, plan: Plan) -> Program:
    """The integer program of a model under a finished plan.

    Raises:
        UnsupportedModelError: an accumulator would not fit int32, or the plan lacks a tensor.
    """
    state = Lowering(model, outline, plan)
    state.raw |= {str(v.name) for v in model.graph.inputs}
    for item in outline.items:
        if isinstance(item, Unit):
            LOWER[item.kind](state, item)
            state.snap()
        else:
            lower_island(state, item)
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


LOWER: dict[str, Callable[[Lowering, Unit], None]] = {
    "conv": lower_conv,
    "gemm": lower_gemm,
    "matmul": lower_matmul,
    "add": lower_add,
    "multiply": lower_multiply,
    "mean": lower_mean,
    "window": lower_window,
    "lookup": lower_lookup,
    "softmax": lower_softmax,
    "norm": lower_norm,
    "concat": lower_concat,
    "move": lower_move,
    "order": lower_order,
}
