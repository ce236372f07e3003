"""Mean and maximum pooling, over any strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding, serial, variable
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.requantize import Rounding
from ptq.kernels.vectors import of_lanes, span, spread
from ptq.kernels.view import View


def both(outer: View, inner: View, i: Sequence[Expr], j: Sequence[Expr]) -> Expr:
    """The flat index by two views of one tensor, over different axes."""
    return outer.at(i) + inner.at(j)


@dataclass(frozen=True)
class Mean:
    """y = requantize(sum of (x - zero_point)).

    kept: x over the axes that stay, in y's order. summed: x over the axes that are summed.
    lanes: sums at a time, of the last axis that stays, whose elements have to be neighbours then.
    """

    kept: View
    summed: View
    y: View
    zero_point: int
    rounding: Rounding
    lanes: int = 1

    def parameters(self) -> tuple[Parameter, ...]:
        """x and y uint8."""
        size = self.kept.size + self.summed.size - 1
        return Parameter("x", "uint8", size), Parameter("y", "uint8", self.y.size)

    @property
    def count(self) -> int:
        """Elements of one sum."""
        return int(np.prod(self.summed.shape, dtype=np.int64))

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Sums the codes, then takes the zero points off at once.

        The last vector begins earlier.
        """
        lanes = self.lanes
        kind, every = of_lanes("int32", lanes), span(T.int32(0), lanes)
        *others, last = self.y.shape or (1,)
        with on.nest([*others, -(-last // lanes)], self.count * lanes) as (*place, number):
            first = T.min(number * lanes, T.int32(last - lanes)) if lanes > 1 else number
            i = [*place, first] if self.y.shape else []
            total = on.local("int32", lanes)
            T.buffer_store(total, spread(T.int32(0), lanes), [every])
            with serial(self.summed.shape) as j:
                codes = x[span(both(self.kept, self.summed, i, j), lanes)]
                T.buffer_store(total, total[every] + T.Cast(kind, codes), [every])
            centred = total[every] - spread(T.int32(self.count * self.zero_point), lanes)
            code = self.rounding.integer(centred, lanes=lanes)
            T.buffer_store(y, code, [span(self.y.at(i), lanes)])

    def oracle(self, x: Array) -> Array:
        """By numpy's sum."""
        every = View(
            (*self.kept.shape, *self.summed.shape),
            (*self.kept.strides, *self.summed.strides),
            self.kept.offset,
        ).read(x)
        axes = tuple(range(len(self.kept.shape), every.ndim))
        total = every.astype(np.int64).sum(axis=axes) - self.count * self.zero_point
        return self.rounding.oracle(total, 0, 0)


@dataclass(frozen=True)
class MaxPool:
    """y = the largest (or smallest) code of each window; places outside the input never win.

    x, y: [n, channels, *spatial].
    """

    x: View
    y: View
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_before: tuple[int, ...]
    smallest: bool = False

    def parameters(self) -> tuple[Parameter, ...]:
        """x and y uint8."""
        return Parameter("x", "uint8", self.x.size), Parameter("y", "uint8", self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Loops in y's order of memory; the window inside."""
        order = sorted(range(len(self.y.shape)), key=lambda a: -self.y.strides[a])
        extents = [self.y.shape[axis] for axis in order]
        with on.nest(extents, int(np.prod(self.kernel))) as variables:
            at = dict(zip(order, variables, strict=True))
            n, c, *where = (at[axis] for axis in range(len(order)))
            best = variable(on, "uint8", self._worst)
            with serial(self.kernel) as offsets:
                places = [
                    p * s + k * d - b
                    for p, s, k, d, b in zip(
                        where, self.strides, offsets, self.dilations, self.pads_before, strict=True
                    )
                ]
                sizes = zip(places, self.x.shape[2:], strict=True)
                inside = [test for p, size in sizes for test in (p >= 0, p < size)]
                with T.If(tirx.all(*inside)), T.Then():
                    code = x[self.x.at([n, c, *places])]
                    better = (T.min if self.smallest else T.max)(best[0], code)
                    T.buffer_store(best, better, [0])
            T.buffer_store(y, best[0], [self.y.at([n, c, *where])])

    def oracle(self, x: Array) -> Array:
        """Window by window."""
        codes, out = self.x.read(x), np.full(self.y.shape, self._worst, np.uint8)
        better = np.minimum if self.smallest else np.maximum
        for place in np.ndindex(*self.y.shape[2:]):
            for offset in np.ndindex(*self.kernel):
                at = [
                    p * s + k * d - b
                    for p, s, k, d, b in zip(
                        place, self.strides, offset, self.dilations, self.pads_before, strict=True
                    )
                ]
                if all(0 <= i < size for i, size in zip(at, codes.shape[2:], strict=True)):
                    window = out[(slice(None), slice(None), *place)]
                    better(window, codes[(slice(None), slice(None), *at)], out=window)
        return out

    @property
    def _worst(self) -> int:
        return 255 if self.smallest else 0
