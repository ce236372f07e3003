"""Convolution and matrix product for any shape: a plain loop nest, one product at a time.

What the fast kernels do not take comes here: grouped, dilated, 1-d and 3-d convolutions, products
of two activations, and every shape on targets without vector instructions of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, serial, variable
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.requantize import Rounding, load_ratio
from ptq.kernels.view import View


@dataclass(frozen=True)
class Convolve:
    """y = requantize(bias + sum (x - z) * weight), padding inside; x, y: [n, channels, *spatial].

    weight: [out, in / groups, *kernel] row-major.
    """

    x: View
    y: View
    weight: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_before: tuple[int, ...]
    groups: int
    zero_point: int
    rounding: Rounding

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int8; bias, multiplier, shift int32 [out]; x uint8, y codes."""
        out = self.weight[0]
        return (
            Parameter("weight", "int8", int(np.prod(self.weight))),
            Parameter("bias", "int32", out),
            Parameter("multiplier", "int32", out),
            Parameter("shift", "int32", out),
            Parameter("x", "uint8", self.x.size),
            Parameter("y", self.rounding.dtype, self.y.size),
        )

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """Every output by itself: n, place, out channel, then its window."""
        weight, bias, multiplier, shift, x, y = buffers
        samples, out, *sizes = self.y.shape
        taps = View(self.weight, _row_major(self.weight))
        per_group = out // self.groups
        work = int(np.prod(self.weight[1:]))
        with on.nest([samples, *sizes, out], work) as (n, *where, channel):
            acc = variable(on, "int32", 0)
            group = tirx.floordiv(channel, per_group)
            with serial(self.weight[2:]) as offsets:
                places = self._places(where, offsets)
                pairs = zip(places, self.x.shape[2:], strict=True)
                inside = [test for p, size in pairs for test in (p >= 0, p < size)]
                with T.If(tirx.all(*inside)), T.Then(), T.serial(0, self.weight[1]) as c:
                    at = self.x.at([n, group * self.weight[1] + c, *places])
                    code = T.Cast("int32", x[at]) - T.int32(self.zero_point)
                    factor = T.Cast("int32", weight[taps.at([channel, c, *offsets])])
                    T.buffer_store(acc, acc[0] + code * factor, [0])
            ratio = load_ratio(self.rounding, multiplier, shift, channel)
            code = self.rounding.integer(acc[0] + bias[channel], *ratio)
            T.buffer_store(y, code, [self.y.at([n, channel, *where])])

    def _places(self, where: list[Expr], offsets: list[Expr]) -> list[Expr]:
        """Where in the input an output and a tap of its window meet."""
        terms = (where, self.strides, offsets, self.dilations, self.pads_before)
        return [p * s + k * d - b for p, s, k, d, b in zip(*terms, strict=True)]

    def oracle(self, weight: Array, bias: Array, m: Array, s: Array, x: Array) -> Array:
        """One matrix product a tap and group."""
        taps = weight.reshape(self.weight).astype(np.int64)
        codes = self.x.read(x).astype(np.int64) - self.zero_point
        acc = np.zeros(self.y.shape, np.int64)
        width, per_group = self.weight[1], self.weight[0] // self.groups
        for where in np.ndindex(*self.y.shape[2:]):
            for offset in np.ndindex(*self.weight[2:]):
                at = self._places(list(where), list(offset))
                if not all(0 <= i < size for i, size in zip(at, self.x.shape[2:], strict=True)):
                    continue
                column = codes[(slice(None), slice(None), *at)]
                for g in range(self.groups):
                    rows = slice(g * per_group, (g + 1) * per_group)
                    w = taps[(rows, slice(None), *offset)]
                    part = column[:, g * width : (g + 1) * width] @ w.T
                    acc[(slice(None), rows, *where)] += part
        spread = (-1, *[1] * (acc.ndim - 2))
        acc += bias.astype(np.int64).reshape(spread)
        return self.rounding.oracle(acc, m.reshape(spread), s.reshape(spread))


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))


@dataclass(frozen=True)
class MatMul:
    """y = requantize(bias + (a - za) @ (b - zb)); views are [*batch, rows, k] and [*batch, k, n].

    b_dtype: int8 for weights, uint8 for an activation. with_bias: else there is none.
    """

    a: View
    b: View
    y: View
    zero_points: tuple[int, int]
    b_dtype: str
    rounding: Rounding

    def parameters(self) -> tuple[Parameter, ...]:
        """b; bias, multiplier, shift int32 [columns]; a uint8, y codes."""
        columns = self.y.shape[-1]
        return (
            Parameter("b", self.b_dtype, self.b.size),
            Parameter("bias", "int32", columns),
            Parameter("multiplier", "int32", columns),
            Parameter("shift", "int32", columns),
            Parameter("a", "uint8", self.a.size),
            Parameter("y", self.rounding.dtype, self.y.size),
        )

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """Every output by itself."""
        b, bias, multiplier, shift, a, y = buffers
        za, zb = self.zero_points
        length = self.a.shape[-1]
        with on.nest(self.y.shape, length) as (*batch, row, column):
            acc = variable(on, "int32", 0)
            with T.serial(0, length) as k:
                left = T.Cast("int32", a[self.a.at([*batch, row, k])]) - T.int32(za)
                right = T.Cast("int32", b[self.b.at([*batch, k, column])]) - T.int32(zb)
                T.buffer_store(acc, acc[0] + left * right, [0])
            ratio = load_ratio(self.rounding, multiplier, shift, column)
            code = self.rounding.integer(acc[0] + bias[column], *ratio)
            T.buffer_store(y, code, [self.y.at([*batch, row, column])])

    def oracle(self, b: Array, bias: Array, m: Array, s: Array, a: Array) -> Array:
        """By numpy's product."""
        za, zb = self.zero_points
        left = self.a.read(a).astype(np.int64) - za
        right = self.b.read(b).astype(np.int64) - zb
        return self.rounding.oracle(left @ right + bias, m, s)
