"""Softmax steps in ONNX: exact in float32, and exact in integers.

    output = min(high, RNE(e n / s)),  e = exp_table[max - x] <= 2^15,  s = sum e,  n <= 256

The quotient is rounded to a float before it is rounded to a code, and still is the same code: a
tie is a float, and where the quotient is none, it is 1 / (2 s) or more away from one, while a
float32 is off by less than 2^-24 e n / s <= 1 / (2 s). A sum up to 2^24 is exact in any order.
Beyond it a float sum is 2^24 or more, too: all quotients are at most 1/2, all codes zero.

What a mask hides is as far away from the maximum as the table has zeros: HIDDEN, or FAR.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.integer.program import Softmax
from ptq.targets.build import Builder
from ptq.targets.exact import cast, int64
from ptq.targets.rows import beside

FAR = 512
HIDDEN = 255
LAST = -1


def in_floats(b: Builder, step: Softmax) -> None:
    """The fast form: few passes over the scores."""
    x = b.codes(step.input)
    shape = b.node("Shape", [x])
    axes, narrow = int64(b, [step.axis]), not step.exp_table[HIDDEN:].any()
    if step.keep is None:
        below = b.node("Sub", [b.node("ReduceMax", [x, axes]), x])
    else:
        below = (_below if narrow else _far_below)(b, x, axes, b.value(step.keep))
    distance = cast(b, below, ir.DataType.INT32)
    table = np.concatenate([step.exp_table, np.zeros(FAR, np.int32)])
    flat = b.node("Reshape", [distance, int64(b, [-1])])
    found = b.node("GatherElements", [b.constant(table, np.float32, "t"), flat])
    power_of_two = step.numerator & (step.numerator - 1) == 0
    quotient = _by_rows if power_of_two and step.axis == LAST else _by_elements
    codes = quotient(b, step, b.node("Reshape", [found, shape]), shape)
    b.bind_codes(step.output, b.clip(codes, 0, step.high))


def _below(b: Builder, x: ir.Value, axes: ir.Value, keep: ir.Value) -> ir.Value:
    """max - x in uint8, of which four times as many fit a cache; 255 where x is hidden."""
    all_bits, none = b.code(HIDDEN), b.code(0)
    kept = b.node("Min", [x, b.node("Where", [keep, all_bits, none])])
    below = b.node("Sub", [b.node("ReduceMax", [kept, axes]), kept])
    return b.node("Max", [below, b.node("Where", [keep, none, all_bits])])


def _far_below(b: Builder, x: ir.Value, axes: ir.Value, keep: ir.Value) -> ir.Value:
    """max - x in int32, for tables that do not end in zero; beyond 255 where x is hidden."""
    zero, far = (b.constant(number, np.int32, "c") for number in (0, FAR))
    hidden = b.node("Where", [keep, zero, far])
    below = b.node("Sub", [hidden, cast(b, x, ir.DataType.INT32)])
    top = b.node("ReduceMin", [below, axes])
    top = b.node("Min", [top, beside(b, top, 0, np.int32)])  # above zero: all is hidden
    return b.node("Sub", [below, top])


def _by_rows(b: Builder, step: Softmax, e: ir.Value, shape: ir.Value) -> ir.Value:
    """One QuantizeLinear, whose scale is s / n for every row: exact, as n is a power of two."""
    rows = b.node("Flatten", [e], {"axis": LAST})
    sums = _at_least_one(b, step, b.node("ReduceSum", [rows, int64(b, [LAST])], {"keepdims": 0}))
    scales = b.node("Mul", [sums, b.real(1 / step.numerator)])
    return b.node("Reshape", [b.node("QuantizeLinear", [rows, scales], {"axis": 0}), shape])


def _by_elements(b: Builder, step: Softmax, e: ir.Value, shape: ir.Value) -> ir.Value:
    """For any axis and n: e n is exact."""
    sums = _at_least_one(b, step, b.node("ReduceSum", [e, int64(b, [step.axis])]))
    product = b.node("Mul", [e, b.real(step.numerator)])
    return b.node("QuantizeLinear", [b.node("Div", [product, sums]), b.real(1), b.code(0)])


def _at_least_one(b: Builder, step: Softmax, sums: ir.Value) -> ir.Value:
    """Rows that a mask hides whole have no sum."""
    return sums if step.keep is None else b.node("Max", [sums, beside(b, sums, 1, np.float32, "s")])


def in_integers(b: Builder, step: Softmax) -> None:
    """The strict form, in int32: floor((2 e n + s) / 2 s), less one for ties above an even code.

    Where a mask keeps less than everything, max - x may be negative: such an index counts from the
    table's end, and what it finds is multiplied by zero.
    """
    x = cast(b, b.codes(step.input), ir.DataType.INT32)
    keep = None if step.keep is None else cast(b, b.value(step.keep), ir.DataType.INT32)
    axes = int64(b, [step.axis])
    one, two, numerator, high = (
        b.constant(number, np.int32, "c") for number in (1, 2, 2 * step.numerator, step.high)
    )
    kept = x if keep is None else b.node("Mul", [x, keep])
    distance = b.node("Sub", [b.node("ReduceMax", [kept, axes]), x])
    e = b.node("Gather", [b.constant(step.exp_table, np.int32, "t"), distance])
    e = e if keep is None else b.node("Mul", [e, keep])
    s = b.node("ReduceSum", [e, axes])
    s = s if keep is None else b.node("Max", [s, one])
    above, twice = b.node("Add", [b.node("Mul", [e, numerator]), s]), b.node("Mul", [s, two])
    share = b.node("Div", [above, twice])
    rest = b.node("Sub", [above, b.node("Mul", [share, twice])])
    tie = cast(b, b.node("Equal", [rest, b.constant(0, np.int32, "c")]), ir.DataType.INT32)
    even = b.node("Sub", [share, b.node("Mul", [tie, b.node("Mod", [share, two])])])
    b.bind_codes(step.output, cast(b, b.node("Min", [even, high]), ir.DataType.UINT8))
