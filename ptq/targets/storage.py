"""Weights as initialisers: int8, or packed codes with a decode that folds at load.

onnxruntime computes every node below once, when it loads the model, and keeps plain int8:

    4-bit levels in -8 .. 7     INT4 -> Cast(INT8)
    uniform grid                codes -> Cast(INT8) -> [Mul 2] -> Sub(zero_point)
    table                       codes -> Cast(INT32) -> [Add row offset] -> Gather(table)
    block multipliers           ... -> Mul(multiplier of the element's block)

How codes are stored, by their bits (UINT2 and INT2 need opset 25):

    2       UINT2
    3, 4    UINT4
    5, 6    two planes: UINT4 -> Cast(UINT8) -> Mul 4 -> Add(UINT2 -> Cast(UINT8))
    7, 8    no codes: the int8 weight itself, as are weights so small that packing saves nothing
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.pairs import saturates
from ptq.integer.program import Convolve, Gemm
from ptq.plan import WeightPlan
from ptq.targets.build import Builder

PLANES = {2: (2,), 3: (4,), 4: (4,), 5: (4, 2), 6: (4, 2)}
OPSETS = {2: 25, 4: 21}
SIGNED = {2: ml_dtypes.int2, 4: ml_dtypes.int4}
UNSIGNED = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4}
NARROW = {  # what fits: (lowest, highest, storage, bits)
    "unsigned nibbles": (0, 15, ml_dtypes.uint4, 4),
    "bytes": (-128, 127, np.int8, 8),
    "words": (-(2**15), 2**15 - 1, np.int16, 16),
}
NODE_BYTES = 60  # of a node that decodes, and its initialiser's header


def store_integers(b: Builder, array: npt.NDArray[np.signedinteger], hint: str) -> ir.Value:
    """An initialiser of the array's type, narrower on disk if that saves more than its Cast."""
    plain = array.size * array.itemsize
    for low, high, dtype, bits in NARROW.values():
        saved = plain - array.size * bits // 8
        if saved > NODE_BYTES and low <= array.min() and array.max() <= high:
            wide = ir.DataType.from_numpy(array.dtype)
            return _cast(b, b.constant(array, dtype, hint), wide)
    return b.constant(array, array.dtype, hint)


def store_operand(b: Builder, step: Convolve | Gemm) -> tuple[ir.Value, np.int8 | np.uint8]:
    """The weight of a step for an integer operator, and its zero point.

    int8, or where that could saturate on CPUs without VNNI (`pairs`) uint8 with zero point 128,
    whose products every CPU adds in 32 bits. Measured on one of those: 2 to 12 % slower than int8.
    """
    transposed = isinstance(step, Gemm) and step.transposed
    if not saturates(step, b.plan(step.input).high):
        return store_weight(b, step.weight, step.stored, transposed), np.int8(0)
    if not _worth_packing(step.stored):
        return b.constant(step.weight.astype(np.int16) + 128, np.uint8, "w"), np.uint8(128)
    packed = store_weight(b, step.weight, step.stored, transposed)
    operands = [_cast(b, packed, ir.DataType.INT32), b.constant(128, np.int32, "c")]
    return _cast(b, b.node("Add", operands, None, "d"), ir.DataType.UINT8), np.uint8(128)


def store_weight(
    b: Builder, weight: npt.NDArray[np.int8], stored: WeightPlan | None, transposed: bool = False
) -> ir.Value:
    """The int8 weight of a step, its codes packed where that is smaller.

    weight: int8 as the step multiplies it; `stored` decodes to it, transposed if `transposed`.
    """
    if stored is None or not _worth_packing(stored):
        return b.constant(weight, np.int8, "w")
    b.opset = max(b.opset, *(OPSETS[width] for width in PLANES[stored.grid.bits]))
    rows = np.moveaxis(stored.require_codes(), stored.axis, 0)
    axis = 0
    if stored.block_multiplier is None and not _leads(stored, transposed):
        rows, axis = rows.T, rows.ndim - 1
    levels = _levels(b, stored, rows, axis)
    if stored.block_multiplier is not None:
        levels = _multiply_blocks(b, stored, levels, rows.shape)
    if axis or _leads(stored, transposed):
        return levels
    return b.node("Transpose", [levels], {"perm": list(range(rows.ndim))[::-1]}, "d")


def stored_bytes(weights: int, channels: int, bits: int) -> int:
    """About what a layer's weight takes in a file: uniform grid, a zero point a channel."""
    planes = PLANES.get(bits)
    if planes is None:
        return weights
    packed = -(-weights * sum(planes) // 8) + 3 * len(planes) * NODE_BYTES + channels
    return min(packed, weights)


def _worth_packing(stored: WeightPlan | None) -> bool:
    """True if codes, zero points or tables, and the nodes that decode, are less than int8."""
    if stored is None or stored.codes is None:
        return False
    grid, zero = stored.grid, stored.zero_point
    planes = PLANES.get(grid.bits)
    if planes is None or (stored.uniform and np.abs(2 * zero - 1).max() > 127):
        return False
    codes = stored.require_codes()
    packed = codes.size * sum(planes) // 8 + 3 * len(planes) * NODE_BYTES
    if stored.uniform:
        packed += len(zero) * (len(np.unique(zero)) > 1)
    else:
        tables = len(np.unique(stored.tables(), axis=0))
        packed += tables * grid.size + 4 * len(zero) * (tables > 1)
    if stored.block_multiplier is not None:
        packed += stored.block_multiplier.size + 4 * codes.size // len(zero)
    return packed < codes.size


def _leads(stored: WeightPlan, transposed: bool) -> bool:
    """True if the channel axis comes first in the weight that the step multiplies with."""
    return (stored.axis == 0) != transposed


def _levels(b: Builder, stored: WeightPlan, codes: npt.NDArray[np.uint8], axis: int) -> ir.Value:
    """T[code] as int8: codes uint8 with the channels along `axis`."""
    grid, zero = stored.grid, stored.zero_point
    channel = [1] * codes.ndim
    channel[axis] = -1
    signed = _signed(stored, codes, axis)
    if signed is not None:
        return _cast(b, b.constant(signed, signed.dtype, "w"), ir.DataType.INT8)
    if stored.uniform:
        levels = _unpack(b, codes, grid.bits, ir.DataType.INT8)
        return _subtract(b, levels, zero.reshape(channel), grid.half)
    index = _unpack(b, codes, grid.bits, ir.DataType.INT32)
    tables, row = np.unique(stored.tables(), axis=0, return_inverse=True)
    if len(tables) > 1:
        offset = (row.reshape(channel) * grid.size).astype(np.int32)
        index = b.node("Add", [index, store_integers(b, offset, "z")], None, "d")
    table = b.constant(tables.reshape(-1), np.int8, "t")
    return b.node("Gather", [table, index], None, "d")


def _signed(
    stored: WeightPlan, codes: npt.NDArray[np.uint8], axis: int
) -> npt.NDArray[np.generic] | None:
    """The levels themselves in two or four bits, where all of them fit."""
    (width, *others) = PLANES[stored.grid.bits]
    index = np.moveaxis(codes, axis, 0).astype(np.intp)
    rows = np.take_along_axis(stored.tables(), index.reshape(len(index), -1), axis=1)
    rows = rows.reshape(index.shape)
    half = 1 << (width - 1)
    if others or rows.min() < -half or rows.max() >= half:
        return None
    return np.moveaxis(rows, 0, axis).astype(SIGNED[width])


def _unpack(b: Builder, codes: npt.NDArray[np.uint8], bits: int, dtype: ir.DataType) -> ir.Value:
    """The codes as `dtype`, from one plane or, high bits first, two."""
    planes = PLANES[bits]
    if len(planes) == 1:
        return _cast(b, b.constant(codes, UNSIGNED[planes[0]], "w"), dtype)
    first, second = planes
    step = 1 << second
    high = _cast(b, b.constant(codes // step, UNSIGNED[first], "w"), dtype)
    low = _cast(b, b.constant(codes % step, UNSIGNED[second], "w"), dtype)
    high = b.node("Mul", [high, b.constant(step, dtype.numpy(), "c")], None, "d")
    return b.node("Add", [high, low], None, "d")


def _subtract(b: Builder, codes: ir.Value, zero: npt.NDArray[np.int64], half: bool) -> ir.Value:
    """code - zero, or 2 * code - (2 * zero - 1) for half-integer levels, in int8."""
    if half:
        codes = b.node("Mul", [codes, b.constant(2, np.int8, "c")], None, "d")
        zero = 2 * zero - 1
    zero = zero.reshape(-1)[:1] if (zero == zero.flat[0]).all() else zero
    return b.node("Sub", [codes, store_integers(b, zero.astype(np.int8), "z")], None, "d")


def _multiply_blocks(
    b: Builder, stored: WeightPlan, levels: ir.Value, shape: tuple[int, ...]
) -> ir.Value:
    """levels * multiplier[channel, block] as int8; levels: [channels, ...] int8."""
    multiplier, block = stored.block_multiplier, stored.block_size
    if multiplier is None:
        return levels
    length = int(np.prod(shape[1:]))
    block_of = (np.arange(length) // block).astype(np.int32)
    small = b.constant(multiplier, np.int8, "t")
    operands = [small, store_integers(b, block_of, "c")]
    factor = b.node("Gather", operands, {"axis": 1}, "d")
    factor = b.node("Reshape", [factor, b.constant(shape, np.int64, "c")], None, "d")
    return b.node("Mul", [levels, factor], None, "d")


def _cast(b: Builder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return b.node("Cast", [value], {"to": int(dtype)}, "d")
