"""Layer norm and RMS norm of rows, on integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, variable
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.requantize import Rounding
from ptq.kernels.view import View


@dataclass(frozen=True)
class Normalize:
    """y = requantize(u * inverse * gain + offset) of every row; see ptq.integer.program.Normalize.

    rows: x and y over all axes but the last. along: x and y over the last.
    """

    rows: tuple[View, View]
    along: tuple[View, View]
    zero_point: int
    centred: bool
    epsilon: int
    shift: int
    inverse_bits: int
    rounding: Rounding

    def parameters(self) -> tuple[Parameter, ...]:
        """gain, offset int64 [n]; x and y uint8."""
        x, y = (r.size + a.size - 1 for r, a in zip(self.rows, self.along, strict=True))
        length = self.along[0].shape[0]
        return (
            Parameter("gain", "int64", length),
            Parameter("offset", "int64", length),
            Parameter("x", "uint8", x),
            Parameter("y", "uint8", y),
        )

    def emit(self, on: Binding, gain: Buffer, offset: Buffer, x: Buffer, y: Buffer) -> None:
        """Two passes over a row: its sums, then its outputs."""
        (rows, to_rows), (along, to_along) = self.rows, self.along
        length = along.shape[0]
        with on.nest(rows.shape, length) as i:
            total, square = variable(on, "int64", 0), variable(on, "int64", 0)
            inverse = variable(on, "int64", 0)

            def centred(j: Expr) -> Expr:
                return T.Cast("int64", x[rows.at(i) + along.at([j])]) - T.int64(self.zero_point)

            with T.serial(0, length) as j:
                T.buffer_store(total, total[0] + centred(j), [0])
                T.buffer_store(square, square[0] + centred(j) * centred(j), [0])
            T.buffer_store(inverse, self._inverse(total[0], square[0], length), [0])
            with T.serial(0, length) as j:
                u = centred(j) * T.int64(length) - total[0] if self.centred else centred(j)
                acc = u * inverse[0] * gain[j] + offset[j]
                at = to_rows.at(i) + to_along.at([j])
                T.buffer_store(y, self.rounding.integer(acc), [at])

    def _inverse(self, total: Expr, square: Expr, length: int) -> Expr:
        """2^inverse_bits // root; below 2^52 the root of a float64 is exact once it is floored."""
        n = T.int64(length)
        spread = n * (n * square - total * total) if self.centred else square
        under = (spread << T.int64(2 * self.shift)) + T.int64(self.epsilon)
        root = T.Cast("int64", tirx.sqrt(T.Cast("float64", under)))
        return tirx.truncdiv(T.int64(1 << self.inverse_bits), T.max(root, T.int64(1)))

    def oracle(self, gain: Array, offset: Array, x: Array) -> Array:
        """Rows first, the last axis last."""
        rows, along = self.rows[0], self.along[0]
        shape, strides = (*rows.shape, *along.shape), (*rows.strides, *along.strides)
        d = View(shape, strides, rows.offset).read(x).astype(np.int64) - self.zero_point
        n, square = along.shape[0], (d * d).sum(axis=-1, keepdims=True)
        if self.centred:
            total = d.sum(axis=-1, keepdims=True)
            d, square = n * d - total, n * (n * square - total * total)
        root = np.floor(np.sqrt(((square << 2 * self.shift) + self.epsilon).astype(np.float64)))
        inverse = (1 << self.inverse_bits) // np.maximum(root.astype(np.int64), 1)
        return self.rounding.oracle(d * inverse * gain + offset, 0, 0)
