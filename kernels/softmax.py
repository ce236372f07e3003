"""Integer softmax of rows, over any strides, with or without a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, variable
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.reduction import both
from ptq.kernels.view import View


@dataclass(frozen=True)
class Mask:
    """What a row keeps: where it is not zero, or is if `inverted`. rows, along: as of x."""

    rows: View
    along: View
    dtype: str
    inverted: bool = False

    @property
    def size(self) -> int:
        """Elements that it reaches."""
        return self.rows.size + self.along.size - 1


@dataclass(frozen=True)
class Softmax:
    """y = min(high, RNE(e numerator / s)), e = exp_table[max - x], s = sum e.

    rows: x and y over all axes but one. along: x and y over that one.
    """

    rows: tuple[View, View]
    along: tuple[View, View]
    numerator: int
    high: int
    mask: Mask | None = None

    def parameters(self) -> tuple[Parameter, ...]:
        """exp_table int32 [256]; the mask, if there is one; x and y uint8."""
        x, y = (r.size + a.size - 1 for r, a in zip(self.rows, self.along, strict=True))
        mask = self.mask
        return (
            Parameter("exp_table", "int32", 256),
            *([] if mask is None else [Parameter("mask", mask.dtype, mask.size)]),
            Parameter("x", "uint8", x),
            Parameter("y", "uint8", y),
        )

    def emit(self, on: Binding, exp_table: Buffer, *buffers: Buffer) -> None:
        """Three passes over a row: maximum, exponentials and their sum, quotient.

        The quotient of two floats is the right code: see ptq.targets.softmax for the proof.
        """
        *masks, x, y = buffers
        (rows, to_rows), (along, to_along) = self.rows, self.along
        length = along.shape[0]
        with on.nest(rows.shape, length) as i:
            top, total = variable(on, "int32", 0), variable(on, "int32", 0)
            e, divisor = on.local("int32", length), on.local("float32")

            def code(j: Expr) -> Expr:
                return T.Cast("int32", x[both(rows, along, i, [j])])

            def kept(value: Expr, j: Expr) -> Expr:
                if self.mask is None:
                    return value
                mark = masks[0][both(self.mask.rows, self.mask.along, i, [j])]
                set_ = mark != tirx.const(0, self.mask.dtype)
                none = T.int32(0)
                pair = (none, value) if self.mask.inverted else (value, none)
                return tirx.Select(set_, *pair)

            with T.serial(0, length) as j:
                T.buffer_store(top, T.max(top[0], kept(code(j), j)), [0])
            with T.serial(0, length) as j:
                distance = T.max(top[0] - code(j), T.int32(0))
                T.buffer_store(e, kept(exp_table[distance], j), [j])
            with T.serial(0, length) as j:
                T.buffer_store(total, total[0] + e[j], [0])
            T.buffer_store(divisor, T.Cast("float32", T.max(total[0], T.int32(1))), [0])
            with T.serial(0, length) as j:
                above = T.Cast("float32", e[j] * T.int32(self.numerator))
                share = T.Cast("int32", tirx.nearbyint(above / divisor[0]))
                limited = T.Cast("uint8", T.min(share, T.int32(self.high)))
                T.buffer_store(y, limited, [both(to_rows, to_along, i, [j])])

    def oracle(self, exp_table: Array, *arrays: Array) -> Array:
        """Rows first, the axis last; in integers."""
        *masks, x = arrays
        codes = _read(self.rows[0], self.along[0], x).astype(np.int64)
        keep = np.ones(codes.shape, bool)
        if self.mask is not None:
            keep = (_read(self.mask.rows, self.mask.along, masks[0]) != 0) != self.mask.inverted
        top = (codes * keep).max(axis=-1, keepdims=True)
        e = exp_table.astype(np.int64)[np.maximum(top - codes, 0)] * keep
        total = np.maximum(e.sum(axis=-1, keepdims=True), 1)
        share, rest = np.divmod(2 * e * self.numerator + total, 2 * total)
        share -= (rest == 0) & (share % 2 == 1)
        return np.asarray(np.minimum(share, self.high), np.uint8)


def _read(rows: View, along: View, flat: Array) -> Array:
    view = View((*rows.shape, *along.shape), (*rows.strides, *along.strides), rows.offset)
    return np.asarray(view.read(flat))
