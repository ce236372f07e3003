"""Add, multiply and table look-up of codes, over any strides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.loops import elementwise
from ptq.kernels.requantize import Rounding, clamp
from ptq.kernels.view import View

FLOAT_EXACT = 2**24


@dataclass(frozen=True)
class Add:
    """y = clamp(z + RNE(((a - za) * m0 + (b - zb) * m1) / 2^S)); a and b seen in y's shape."""

    a: View
    b: View
    y: View
    multipliers: tuple[int, int]
    zero_points: tuple[int, int]
    rounding: Rounding

    def parameters(self) -> tuple[Parameter, ...]:
        """All uint8."""
        views = {"a": self.a, "b": self.b, "y": self.y}
        return tuple(Parameter(name, "uint8", view.size) for name, view in views.items())

    @property
    def bound(self) -> int:
        """The largest |sum| of any two codes."""
        terms = zip(self.multipliers, self.zero_points, strict=True)
        return sum(abs(m) * max(z, 255 - z) for m, z in terms)

    def emit(self, on: Binding, a: Buffer, b: Buffer, y: Buffer) -> None:
        """In float32 where every sum is exact there, because that is one instruction a step."""
        (m, n), (za, zb) = self.multipliers, self.zero_points
        assert self.rounding.ratio is not None
        # A power of two: multiplying by it is exact, so only the sum has to be.
        ratio = on.float32(self.rounding.ratio[0] * 2.0 ** -self.rounding.ratio[1])

        def body(at_a: Expr, at_b: Expr, at_y: Expr) -> None:
            kind = "int32" if self.bound < FLOAT_EXACT else "int64"
            first = (T.Cast(kind, a[at_a]) - tirx.const(za, kind)) * tirx.const(m, kind)
            second = (T.Cast(kind, b[at_b]) - tirx.const(zb, kind)) * tirx.const(n, kind)
            total = first + second
            exact = kind == "int32"
            code = self._float(total, ratio) if exact else self.rounding.integer(total)
            T.buffer_store(y, code, [at_y])

        elementwise(on, [self.a, self.b, self.y], body)

    def _float(self, total: Expr, ratio: Expr) -> Expr:
        r = self.rounding
        scaled = T.Cast("float32", total) * ratio
        low, high = T.float32(r.low - r.zero_point), T.float32(r.high - r.zero_point)
        rounded = T.Cast("int32", tirx.nearbyint(clamp(scaled, low, high)))
        return T.Cast("uint8", rounded + T.int32(r.zero_point))

    def oracle(self, a: Array, b: Array) -> Array:
        """By the reference's rounding."""
        (m, n), (za, zb) = self.multipliers, self.zero_points
        first = (self.a.read(a).astype(np.int64) - za) * m
        second = (self.b.read(b).astype(np.int64) - zb) * n
        return self.rounding.oracle(first + second, 0, 0)


@dataclass(frozen=True)
class Multiply:
    """y = clamp(z + RNE((a - za) * (b - zb) * M / 2^S)); a and b seen in y's shape."""

    a: View
    b: View
    y: View
    zero_points: tuple[int, int]
    rounding: Rounding

    def parameters(self) -> tuple[Parameter, ...]:
        """All uint8."""
        views = {"a": self.a, "b": self.b, "y": self.y}
        return tuple(Parameter(name, "uint8", view.size) for name, view in views.items())

    def emit(self, on: Binding, a: Buffer, b: Buffer, y: Buffer) -> None:
        """The product fits in 17 bits."""
        za, zb = self.zero_points

        def body(at_a: Expr, at_b: Expr, at_y: Expr) -> None:
            first = T.Cast("int32", a[at_a]) - T.int32(za)
            second = T.Cast("int32", b[at_b]) - T.int32(zb)
            T.buffer_store(y, self.rounding.integer(first * second), [at_y])

        elementwise(on, [self.a, self.b, self.y], body)

    def oracle(self, a: Array, b: Array) -> Array:
        """By the reference's rounding."""
        za, zb = self.zero_points
        product = (self.a.read(a).astype(np.int64) - za) * (self.b.read(b).astype(np.int64) - zb)
        return self.rounding.oracle(product, 0, 0)


@dataclass(frozen=True)
class Lookup:
    """y = table[channel, x].

    channel: where the row of an element begins in the table: stride 256 along the channel axis,
    0 along the others; all strides are 0 if there is one table.
    """

    x: View
    channel: View
    y: View

    def parameters(self) -> tuple[Parameter, ...]:
        """table uint8 [rows * 256], x, y uint8."""
        return (
            Parameter("table", "uint8", self.channel.size + 255),
            Parameter("x", "uint8", self.x.size),
            Parameter("y", "uint8", self.y.size),
        )

    def emit(self, on: Binding, table: Buffer, x: Buffer, y: Buffer) -> None:
        """One load a code."""

        def body(at_x: Expr, row: Expr, at_y: Expr) -> None:
            T.buffer_store(y, table[row + T.Cast("int32", x[at_x])], [at_y])

        elementwise(on, [self.x, self.channel, self.y], body)

    def oracle(self, table: Array, x: Array) -> Array:
        """By numpy's indexing."""
        rows = self.channel.read(np.arange(self.channel.size))
        return np.asarray(table[rows + self.x.read(x)])
