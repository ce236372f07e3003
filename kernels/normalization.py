"""Layer norm and RMS norm of rows, on integers that float64 holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, variable
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.requantize import Rounding
from ptq.kernels.vectors import of_lanes, span, spread
from ptq.kernels.view import View


@dataclass(frozen=True)
class Normalize:
    """y = requantize(u * inverse * gain + offset) of every row; see ptq.integer.program.Normalize.

    rows: x and y over all axes but the last. along: x and y over the last.
    lanes: elements at a time; more than one wants rows without gaps, of a multiple of so many.
    """

    rows: tuple[View, View]
    along: tuple[View, View]
    zero_point: int
    centred: bool
    mean_bits: int
    epsilon: int
    shift: int
    inverse_bits: int
    rounding: Rounding
    dtype: str = "uint8"
    lanes: int = 1

    def parameters(self) -> tuple[Parameter, ...]:
        """gain, offset float64 [n], integral; x of `dtype`, y codes."""
        x, y = (r.size + a.size - 1 for r, a in zip(self.rows, self.along, strict=True))
        return (
            Parameter("gain", "float64", self.length),
            Parameter("offset", "float64", self.length),
            Parameter("x", self.dtype, x),
            Parameter("y", self.rounding.dtype, y),
        )

    @property
    def length(self) -> int:
        """Elements of a row."""
        return self.along[0].shape[0]

    def emit(self, on: Binding, gain: Buffer, offset: Buffer, x: Buffer, y: Buffer) -> None:
        """Three passes over a row: its sum, its squares, its outputs."""
        (rows, to_rows), (along, to_along) = self.rows, self.along
        lanes, length = self.lanes, self.length
        assert self.rounding.ratio is not None
        unit = on.real(self.rounding.ratio[0] * 2.0 ** -self.rounding.ratio[1], "float64")
        with on.nest(rows.shape, length) as i:

            def codes(j: Expr) -> Expr:
                at = span(rows.at(i) + along.at([j]), lanes)
                d = T.Cast(of_lanes("int32", lanes), x[at]) - spread(
                    T.int32(self.zero_point), lanes
                )
                return d * spread(T.int32(1 << self.mean_bits), lanes) if self.mean_bits else d

            mean = variable(on, "int32", 0)
            if self.centred:
                wide = self._sum_dtype
                total = self._sum(on, wide, lambda j: T.Cast(of_lanes(wide, lanes), codes(j)))
                twice = T.Cast("int64", total[0]) * T.int64(2) + T.int64(length)
                rounded = tirx.floordiv(twice, T.int64(2 * length))
                T.buffer_store(mean, T.Cast("int32", rounded), [0])

            def moved(j: Expr) -> Expr:
                return T.Cast(of_lanes("float64", lanes), codes(j) - spread(mean[0], lanes))

            square = self._sum(on, "float64", lambda j: moved(j) * moved(j))
            inverse = variable(on, "float64", 0.0)
            T.buffer_store(inverse, self._inverse(square[0]), [0])
            with T.serial(0, length // lanes) as step:
                j = step * lanes
                here = span(j, lanes)
                acc = moved(j) * spread(inverse[0], lanes) * gain[here] + offset[here]
                at = span(to_rows.at(i) + to_along.at([j]), lanes)
                T.buffer_store(y, self._round(acc, unit), [at])

    @property
    def _sum_dtype(self) -> str:
        """What holds the sum of a row."""
        largest = self.length * np.iinfo(self.dtype).max << self.mean_bits
        return "int32" if largest <= np.iinfo(np.int32).max else "int64"

    def _sum(self, on: Binding, dtype: str, term: Callable[[Expr], Expr]) -> Buffer:
        """A variable that holds the sum of `term` over a row."""
        lanes = self.lanes
        parts, total = on.local(dtype, lanes), variable(on, dtype, 0)
        whole = span(T.int32(0), lanes)
        T.buffer_store(parts, spread(tirx.const(0, dtype), lanes), [whole])
        with T.serial(0, self.length // lanes) as step:
            T.buffer_store(parts, parts[whole] + term(step * lanes), [whole])
        for lane in range(lanes):
            T.buffer_store(total, total[0] + parts[lane], [0])
        return total

    def _inverse(self, square: Expr) -> Expr:
        """2^inverse_bits // root; below 2^52 the root of a float64 is exact once it is floored."""
        under = (T.Cast("int64", square) << T.int64(2 * self.shift)) + T.int64(self.epsilon)
        root = T.Cast("int64", tirx.sqrt(T.Cast("float64", under)))
        inverse = tirx.truncdiv(T.int64(1 << self.inverse_bits), T.max(root, T.int64(1)))
        return T.Cast("float64", inverse)

    def _round(self, acc: Expr, unit: Expr) -> Expr:
        return self.rounding.real(acc * spread(unit, self.lanes), self.lanes, "float64")

    def oracle(self, gain: Array, offset: Array, x: Array) -> Array:
        """Rows first, the last axis last."""
        rows, along = self.rows[0], self.along[0]
        shape, strides = (*rows.shape, *along.shape), (*rows.strides, *along.strides)
        d = View(shape, strides, rows.offset).read(x).astype(np.int64) - self.zero_point
        if self.centred:
            d = d << self.mean_bits
            d = d - (2 * d.sum(axis=-1, keepdims=True) + self.length) // (2 * self.length)
        square = (d * d).sum(axis=-1, keepdims=True)
        root = np.floor(np.sqrt(((square << 2 * self.shift) + self.epsilon).astype(np.float64)))
        inverse = (1 << self.inverse_bits) // np.maximum(root.astype(np.int64), 1)
        acc = d * inverse * gain.astype(np.int64) + offset.astype(np.int64)
        return self.rounding.oracle(acc, 0, 0)
