"""Raw integer inputs that a network reads as such: rows that they choose, masks.

A kernel can read a raw value that depends on what an input holds if it only has the input's
elements elsewhere, or asks of each whether it is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from ptq.integer.program import Apply, Boundary, Program, Ref
from ptq.targets.tvm.trace import static_values

DTYPES = {ir.DataType.INT64: "int64", ir.DataType.INT32: "int32"}
KEEPS_ORDER = frozenset({"Cast", "Equal", "Not"})
MOVES = frozenset({"Expand", "Flatten", "GatherElements", "GatherND", "Identity", "Reshape",
                   "Slice", "Squeeze", "Transpose", "Unsqueeze"})  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """The input whose elements a raw value has. tested: as booleans, True where they are that."""

    feed: str
    tested: Literal["", "zero", "not zero"] = ""


def dtype_of(boundary: Boundary, program: Program) -> str | None:
    """What an input's array holds: float32 if it is quantised at once, or integers, or None."""
    return "float32" if boundary.name in program.codes else DTYPES.get(boundary.dtype)


def origins(program: Program, static: frozenset[str]) -> dict[str, Origin]:
    """Raw values by name that have an input's elements."""
    found = {b.name: Origin(b.name) for b in program.inputs if b.name not in program.codes}
    for step in program.steps:
        if isinstance(step, Apply) and step.island is None and not step.domain:
            origin = _origin(program, step, found, static)
            found |= {} if origin is None else {ref.name: origin for ref in step.outputs}
    return found


def _is_zero(program: Program, ref: Ref | None) -> bool:
    constant = None if ref is None else program.constants.get(ref.name)
    return constant is not None and constant.size == 1 and not np.asarray(constant).any()


def _origin(
    program: Program, step: Apply, found: Mapping[str, Origin], static: frozenset[str]
) -> Origin | None:
    first, *others = step.inputs
    if first is None or first.codes or first.name not in found:
        return None
    if any(ref is not None and (ref.codes or ref.name not in static) for ref in others):
        return None
    origin = found[first.name]
    if step.op_type in MOVES:
        return origin
    if step.op_type == "Not":
        return replace(origin, tested="zero" if origin.tested == "not zero" else "not zero")
    if step.op_type == "Equal" and not origin.tested and _is_zero(program, others[0]):
        return replace(origin, tested="zero")
    if step.op_type != "Cast":
        return None
    wanted = ir.DataType(next(attr.as_int() for attr in step.attributes if attr.name == "to"))
    if wanted == ir.DataType.BOOL:
        return replace(origin, tested=origin.tested or "not zero")
    return origin if wanted == ir.DataType.INT64 else None


def chosen_table(program: Program, step: Apply, known: Mapping[str, Origin]) -> str | None:
    """The constant that the step gathers rows of, if an input says which."""
    if step.op_type != "Gather" or any(attr.as_int() for attr in step.attributes):
        return None  # another axis than the first
    table, index = step.inputs
    if table is None or index is None or index.codes or table.name not in program.code_constants:
        return None
    origin = known.get(index.name)
    return None if origin is None or origin.tested else table.name


def row_counts(program: Program) -> dict[str, int]:
    """Inputs that choose rows, and how many they have: the fewest, if they choose in several."""
    found: dict[str, int] = {}
    known = origins(program, static_values(program))
    for step in program.steps:
        table = chosen_table(program, step, known) if isinstance(step, Apply) else None
        index = step.inputs[1] if table is not None and isinstance(step, Apply) else None
        if table is not None and index is not None:
            feed, rows = known[index.name].feed, len(program.code_constants[table])
            found[feed] = min(rows, found.get(feed, rows))
    return found
