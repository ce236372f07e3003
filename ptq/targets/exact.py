"""Integer arithmetic in standard ONNX operators: no float, no vendor's domain.

Requantisation y = clip(z + RNE(acc * M / 2^S), low, high) on int64. With v = acc * M:

    RNE(v / 2^S) = floor((v + 2^(S-1) - 1 + (floor(v / 2^S) & 1)) / 2^S)    for S >= 1

Div truncates, so v gets an offset of 2^58 first: it is positive then, and since 2^58 is an even
multiple of 2^S, neither rounding nor parity changes. Biases and zero points join that offset.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Lookup, Mean, Multiply
from ptq.targets.build import Builder
from ptq.targets.rows import shape_of

OFFSET_BITS = 58


def cast(b: Builder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Cast to `dtype`."""
    return b.node("Cast", [value], {"to": int(dtype)})


def int64(b: Builder, array: npt.ArrayLike) -> ir.Value:
    """An int64 initialiser."""
    return b.constant(array, np.int64, "c")


def requantize(
    b: Builder,
    acc: ir.Value,
    requantizer: Requantizer,
    *,
    bias: npt.ArrayLike = 0,
    trailing: int = 0,
) -> ir.Value:
    """Codes of acc + bias; acc: integers of any type, bias: [] or [channels].

    trailing: number of axes behind the channel axis of a per-channel requantizer or bias.
    """
    factor, shift = _at_least_one_shift(requantizer)
    wide = cast(b, acc, ir.DataType.INT64)
    spread = _channels(factor, trailing)
    scaled = b.node("Mul", [wide, int64(b, spread)])
    addend = np.asarray(bias, np.int64) * factor
    return _round_shift(b, scaled, addend, shift, requantizer, trailing)


def _at_least_one_shift(
    requantizer: Requantizer,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """M and S, or 2 M and S + 1 if some S is 0."""
    extra = int((requantizer.shift == 0).any())
    return requantizer.multiplier << extra, requantizer.shift + extra


def _round_shift(
    b: Builder,
    value: ir.Value,
    addend: npt.NDArray[np.int64],
    shift: npt.NDArray[np.int64],
    requantizer: Requantizer,
    trailing: int = 0,
) -> ir.Value:
    """clip(z + RNE((value + addend) / 2^S), low, high) as codes; value int64, S >= 1."""
    unit = int64(b, _channels(np.int64(1) << shift, trailing))
    offset = _channels(addend + (np.int64(1) << OFFSET_BITS), trailing)
    below_half = _channels((np.int64(1) << (shift - 1)) - 1, trailing)
    back = _channels(requantizer.zero_point - (np.int64(1) << (OFFSET_BITS - shift)), trailing)
    positive = b.node("Add", [value, int64(b, offset)])
    odd = b.node("BitwiseAnd", [b.node("Div", [positive, unit]), int64(b, 1)])
    nearly = b.node("Add", [positive, int64(b, below_half)])
    rounded = b.node("Div", [b.node("Add", [nearly, odd]), unit])
    moved = b.node("Add", [rounded, int64(b, back)])
    return _saturate(b, moved, requantizer)


def _saturate(b: Builder, value: ir.Value, requantizer: Requantizer) -> ir.Value:
    ends = [int64(b, requantizer.low), int64(b, requantizer.high)]
    clipped = b.node("Clip", [value, *ends])
    return cast(b, clipped, ir.DataType.from_numpy(np.dtype(requantizer.dtype)))


def _channels(numbers: npt.NDArray[np.int64], trailing: int) -> npt.NDArray[np.int64]:
    """[] or [channels] -> [] if all are equal, else [channels, 1, ...] with `trailing` ones."""
    equal = bool((numbers == numbers.flat[0]).all())
    shape = () if equal else (-1, *[1] * trailing)
    return np.asarray(numbers.reshape(-1)[: 1 if equal else None].reshape(shape), np.int64)


def mean(b: Builder, step: Mean) -> None:
    """ReduceSum in int32, then the zero points in one, requantised."""
    codes = cast(b, b.codes(step.input), ir.DataType.INT32)
    operands = [codes, int64(b, step.axes)]
    total = b.node("ReduceSum", operands, {"keepdims": int(step.keepdims)})
    zeros = -step.count * b.plan(step.input).zero_point
    b.bind_codes(step.output, requantize(b, total, step.requantizer, bias=zeros))


def add(b: Builder, step: Add) -> None:
    """Both operands times their multiplier in int64, one rounding."""
    scale = 1 << int((step.requantizer.shift == 0).any())
    _, shift = _at_least_one_shift(step.requantizer)
    terms, zeros = [], 0
    for name, multiplier in zip((step.a, step.b), step.multipliers, strict=True):
        wide = cast(b, b.codes(name), ir.DataType.INT64)
        terms.append(b.node("Mul", [wide, int64(b, multiplier * scale)]))
        zeros -= multiplier * scale * b.plan(name).zero_point
    total = b.node("Add", terms)
    addend = np.asarray(zeros, np.int64)
    b.bind_codes(step.output, _round_shift(b, total, addend, shift, step.requantizer))


def multiply(b: Builder, step: Multiply) -> None:
    """Product of the centred operands in int32, requantised."""
    product = b.node("Mul", [_centred(b, step.a), _centred(b, step.b)])
    b.bind_codes(step.output, requantize(b, product, step.requantizer))


def _centred(b: Builder, name: str) -> ir.Value:
    """code - zero_point of an activation, int32."""
    codes, zero = cast(b, b.codes(name), ir.DataType.INT32), b.plan(name).zero_point
    return codes if zero == 0 else b.node("Sub", [codes, b.constant(zero, np.int32, "c")])


def lookup(b: Builder, step: Lookup) -> None:
    """output = table[input]."""
    b.bind_codes(step.output, look_up(b, step, b.codes(step.input), step.axis or 0))


def look_up(b: Builder, step: Lookup, codes: ir.Value, axis: int) -> ir.Value:
    """The step's table at `codes`; a table for each channel along `axis` if it has two dimensions.

    On a flat row of indices, because GatherElements is eight to ten times faster in onnxruntime
    than Gather, which copies byte by byte, and takes tables of one rank with the indices only.
    It costs about 1 ns an element, on one thread; wider indices or tables are no faster, but
    tables beyond the first cache are slower: channels share those that are equal.
    """
    index = cast(b, codes, ir.DataType.INT32)
    tables, which = np.unique(np.atleast_2d(step.table), axis=0, return_inverse=True)
    if len(tables) > 1:
        offset = _channels(tables.shape[1] * which, _trailing_axes(b, codes, axis))
        index = b.node("Add", [index, b.constant(offset, np.int32, "c")])
    table = b.constant(tables.reshape(-1), tables.dtype, "t")
    found = b.node("GatherElements", [table, b.node("Reshape", [index, int64(b, [-1])])])
    return b.node("Reshape", [found, shape_of(b, codes)])


def _trailing_axes(b: Builder, codes: ir.Value, axis: int) -> int:
    """Number of axes behind `axis`.

    Raises:
        UnsupportedModelError: the axis counts from the front and the rank is not known.
    """
    if axis < 0:
        return -axis - 1
    if codes.shape is None:
        raise UnsupportedModelError(
            f"{b.scope}: axis {axis} of {codes.name}, whose rank is not known; wanted a known rank "
            "or an axis counted from the end: export the model with shapes"
        )
    return len(codes.shape) - axis - 1
