"""Weights as initialisers: int8, or packed codes with a decode that folds at load.

onnxruntime computes every node below once, when it loads the model, and keeps plain int8:

    4-bit levels in -8 .. 7     INT4 -> Cast(INT8)
    uniform grid                UINT4 -> Cast(INT32) -> [Mul 2] -> Sub(zero_point) -> Cast(INT8)
    table                       UINT4 -> Cast(INT32) -> [Add row offset] -> Gather(table)
    block multipliers           ... -> Mul(multiplier of the element's block) -> Cast(INT8)

Two-bit codes are stored as INT2 / UINT2 (opset 25); three-bit codes in four-bit containers.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.plan import WeightPlan
from ptq.targets.build import Builder

PACKED_BITS = 4
OPSETS = {2: 25, 4: 21}
SIGNED = {2: ml_dtypes.int2, 4: ml_dtypes.int4}
UNSIGNED = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4}


def store_weight(
    b: Builder, weight: npt.NDArray[np.int8], stored: WeightPlan | None, transposed: bool = False
) -> ir.Value:
    """The int8 weight of a step, packed if its codes have at most four bits.

    weight: int8 as the step multiplies it; `stored` decodes to it, transposed if `transposed`.
    """
    if stored is None or stored.grid.bits > PACKED_BITS or stored.codes is None:
        return b.constant(weight, np.int8, f"{b.scope}.weight")
    width = 2 if stored.grid.bits == 2 else 4
    b.opset = max(b.opset, OPSETS[width])
    rows = np.moveaxis(stored.codes, stored.axis, 0)
    axis = 0
    if stored.block_multiplier is None and not _leads(stored, transposed):
        rows, axis = rows.T, rows.ndim - 1
    levels = _levels(b, stored, rows, axis, width)
    if stored.block_multiplier is not None:
        levels = _multiply_blocks(b, stored, levels, rows.shape)
    if axis or _leads(stored, transposed):
        return levels
    return b.node("Transpose", [levels], {"perm": list(range(rows.ndim))[::-1]})


def _leads(stored: WeightPlan, transposed: bool) -> bool:
    """True if the channel axis comes first in the weight that the step multiplies with."""
    return (stored.axis == 0) != transposed


def _levels(
    b: Builder, stored: WeightPlan, codes: npt.NDArray[np.uint8], axis: int, width: int
) -> ir.Value:
    """T[code] as int8: codes uint8 with the channels along `axis`."""
    grid, zero = stored.grid, stored.zero_point
    channel = [1] * codes.ndim
    channel[axis] = -1
    decoded = np.moveaxis(grid.decode(np.moveaxis(codes, axis, 0), zero), 0, axis)
    half = 1 << (width - 1)
    if decoded.min() >= -half and decoded.max() < half:
        packed = b.constant(decoded, SIGNED[width], f"{b.scope}.weight_codes")
        return _cast(b, packed, ir.DataType.INT8)
    packed = b.constant(codes, UNSIGNED[width], f"{b.scope}.weight_codes")
    index = _cast(b, packed, ir.DataType.INT32)
    if grid.uniform:
        return _affine(b, index, zero.reshape(channel), grid.half)
    tables, row = np.unique(grid.tables(zero), axis=0, return_inverse=True)
    if len(tables) > 1:
        offset = (row.reshape(channel) * grid.size).astype(np.int32)
        index = b.node("Add", [index, b.constant(offset, np.int32, f"{b.scope}.table_offset")])
    table = b.constant(tables.reshape(-1), np.int8, f"{b.scope}.table")
    return b.node("Gather", [table, index])


def _affine(b: Builder, codes: ir.Value, zero: npt.NDArray[np.int64], half: bool) -> ir.Value:
    """int8(code - zero), or int8(2 * code - (2 * zero - 1)) for half-integer levels."""
    if half:
        codes, zero = b.node("Mul", [codes, b.constant(np.int32(2), np.int32, "two")]), 2 * zero - 1
    zero = zero.reshape(-1)[:1] if (zero == zero.flat[0]).all() else zero
    shifted = b.node("Sub", [codes, b.constant(zero, np.int32, f"{b.scope}.weight_zero_point")])
    return _cast(b, shifted, ir.DataType.INT8)


def _multiply_blocks(
    b: Builder, stored: WeightPlan, levels: ir.Value, shape: tuple[int, ...]
) -> ir.Value:
    """levels * multiplier[channel, block] as int8; levels: [channels, ...] int8."""
    multiplier, block = stored.block_multiplier, stored.block_size
    if multiplier is None:
        return levels
    length = int(np.prod(shape[1:]))
    block_of = b.constant(np.arange(length) // block, np.int32, f"{b.scope}.block_of")
    small = b.constant(multiplier, np.int8, f"{b.scope}.block_multiplier")
    factor = b.node("Gather", [small, block_of], {"axis": 1})
    factor = b.node("Reshape", [factor, b.constant(shape, np.int64, "shape")])
    product = b.node(
        "Mul", [_cast(b, levels, ir.DataType.INT32), _cast(b, factor, ir.DataType.INT32)]
    )
    return _cast(b, product, ir.DataType.INT8)


def _cast(b: Builder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return b.node("Cast", [value], {"to": int(dtype)})
