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

    @property
    def rounds_mean(self) -> bool:
        """True if u = d - mean, rounded; else u = n d - sum d, or d."""
        return self.centred and self.dtype != "uint8"

    def emit(self, on: Binding, gain: Buffer, offset: Buffer, x: Buffer, y: Buffer) -> None:
        """Three passes over a row: its sum, its squares, its outputs."""
        (rows, to_rows), (along, to_along) = self.rows, self.along
        lanes, length = self.lanes, self.length
        assert self.rounding.ratio is not None
        unit = on.real(self.rounding.ratio[0] * 2.0 ** -self.rounding.ratio[1], "float64")
        with on.nest(rows.shape, length) as i:

            def codes(j: Expr) -> Expr:
                at = span(rows.at(i) + along.at([j]), lanes)
                return T.Cast(of_lanes("int32", lanes), x[at]) - spread(
                    T.int32(self.zero_point), lanes
                )

            total = self._sum(on, "int32", codes)
            shift = variable(on, "int32", 0)
            if self.rounds_mean:
                twice = total[0] * T.int32(2) + T.int32(length)
                T.buffer_store(shift, tirx.floordiv(twice, T.int32(2 * length)), [0])

            def moved(j: Expr) -> Expr:
                return T.Cast(of_lanes("float64", lanes), codes(j) - spread(shift[0], lanes))

            square = self._sum(on, "float64", lambda j: moved(j) * moved(j))
            inverse = variable(on, "float64", 0.0)
            T.buffer_store(inverse, self._inverse(total[0], square[0]), [0])
            with T.serial(0, length // lanes) as step:
                j = step * lanes
                u = moved(j)
                if self.centred and not self.rounds_mean:
                    factor, sum_ = T.float64(length), T.Cast("float64", total[0])
                    u = u * spread(factor, lanes) - spread(sum_, lanes)
                here = span(j, lanes)
                acc = u * spread(inverse[0], lanes) * gain[here] + offset[here]
                at = span(to_rows.at(i) + to_along.at([j]), lanes)
                T.buffer_store(y, self._round(acc, unit), [at])

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

    def _inverse(self, total: Expr, square: Expr) -> Expr:
        """2^inverse_bits // root; below 2^52 the root of a float64 is exact once it is floored."""
        n, total, spread_ = T.int64(self.length), T.Cast("int64", total), T.Cast("int64", square)
        if self.centred and not self.rounds_mean:
            spread_ = n * (n * spread_ - total * total)
        under = (spread_ << T.int64(2 * self.shift)) + T.int64(self.epsilon)
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
        n, total = along.shape[0], d.sum(axis=-1, keepdims=True)
        if self.rounds_mean:
            d = d - (2 * total + n) // (2 * n)
        square = (d * d).sum(axis=-1, keepdims=True)
        if self.centred and not self.rounds_mean:
            d, square = n * d - total, n * (n * square - total * total)
        root = np.floor(np.sqrt(((square << 2 * self.shift) + self.epsilon).astype(np.float64)))
        inverse = (1 << self.inverse_bits) // np.maximum(root.astype(np.int64), 1)
        acc = d * inverse * gain.astype(np.int64) + offset.astype(np.int64)
        return self.rounding.oracle(acc, 0, 0)
