"""Lower embeddings of 16-bit codes: rows of a table stored in 8 bits, with a grid for every column.

    wide code = widen[column, narrow code],   narrow code = rint((value - low) / step),
    low, step = minimum and range / 255 of the column

A few columns have outliers many times as large as the others; a norm takes them apart again, so
that one 8-bit grid for all columns loses the rest. Only the rows that are read are widened.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.grid import Grid, container
from ptq.integer import claims
from ptq.integer.lowering import Lowering
from ptq.integer.program import Apply, Lookup, Ref
from ptq.integer.units import Unit, operands
from ptq.plan import ActivationPlan

TOP = 255
NARROW = ActivationPlan(Grid(), np.float32(1), 0)
"""Of codes whose meaning depends on the column."""


def is_wide_embedding(state: Lowering, unit: Unit) -> bool:
    """True for rows gathered from a constant matrix whose codes have 16 bits."""
    name, node = unit.inputs[0], unit.node
    table = claims.constant(state.outline.constants.get(name))
    if node.op_type != "Gather" or table is None or table.ndim != 2:
        return False
    rows = claims.integer(node, "axis", 0) in (0, -2)
    return rows and state.grid(name).dtype is not container(TOP)


def lower_embedding(state: Lowering, unit: Unit) -> None:
    """Gather narrow rows, then one table a column to wide codes."""
    source, gathered = f"{unit.inputs[0]}/narrow", f"{unit.output}/narrow"
    value, indices = operands(unit.node)
    y, (narrow, levels) = state.write(unit.output), by_column(_matrix(value))
    state.code_constants[source] = narrow
    state.codes |= {source: NARROW, gathered: NARROW}
    inputs = (Ref(source, codes=True), state.raw_operand(indices))
    outputs = (Ref(gathered, codes=True),)
    attributes = tuple(unit.node.attributes.values())
    state.steps.append(Apply(unit.name, "Gather", "", inputs, outputs, attributes))
    table = y.quantize(levels)
    name = f"{unit.name}/widen"
    state.steps.append(Lookup(name, gathered, unit.output, table, -1, "widen"))


def _matrix(value: ir.Value) -> npt.NDArray[np.float32]:
    return np.asarray(claims.constant(value), np.float32)


def by_column(
    table: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes [rows, columns] of a float table, and what they mean: levels [columns, 256]."""
    low = table.min(axis=0)
    step = np.maximum((table.max(axis=0) - low) / TOP, np.finfo(np.float32).tiny)
    codes = np.clip(np.rint((table - low) / step), 0, TOP).astype(np.uint8)
    levels = low[:, None] + step[:, None] * np.arange(TOP + 1, dtype=np.float32)
    return codes, levels
