"""Codes that only change their place: strided copies, a fill, and a table of places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.loops import elementwise
from ptq.kernels.view import View


@dataclass(frozen=True)
class Copy:
    """y = x; both views have one shape. Elements of y's buffer outside its view stay."""

    x: View
    y: View

    def parameters(self) -> tuple[Parameter, ...]:
        """x and y uint8."""
        return Parameter("x", "uint8", self.x.size), Parameter("y", "uint8", self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Contiguous stretches become one loop."""

        def body(at_x: Expr, at_y: Expr) -> None:
            T.buffer_store(y, x[at_x], [at_y])

        elementwise(on, [self.x, self.y], body)

    def oracle(self, x: Array) -> Array:
        """The view itself."""
        return self.x.read(x)


@dataclass(frozen=True)
class Fill:
    """y = value everywhere."""

    y: View
    value: int

    def parameters(self) -> tuple[Parameter, ...]:
        """y uint8."""
        return (Parameter("y", "uint8", self.y.size),)

    def emit(self, on: Binding, y: Buffer) -> None:
        """One loop."""
        elementwise(on, [self.y], lambda at: T.buffer_store(y, T.uint8(self.value), [at]))

    def oracle(self) -> Array:
        """A constant array."""
        return np.full(self.y.shape, self.value, np.uint8)


@dataclass(frozen=True)
class Take:
    """y[i] = x[index[i]] where index is not negative; other elements stay.

    size: of x's buffer. y: one axis.
    """

    size: int
    y: View

    def parameters(self) -> tuple[Parameter, ...]:
        """index int32, x and y uint8."""
        return (
            Parameter("index", "int32", self.y.shape[0]),
            Parameter("x", "uint8", self.size),
            Parameter("y", "uint8", self.y.size),
        )

    def emit(self, on: Binding, index: Buffer, x: Buffer, y: Buffer) -> None:
        """One load of the index and one of the code."""
        entries = View(self.y.shape, (1,))

        def body(entry: Expr, at: Expr) -> None:
            with T.If(index[entry] >= 0), T.Then():
                T.buffer_store(y, x[index[entry]], [at])

        elementwise(on, [entries, self.y], body)

    def oracle(self, index: Array, x: Array) -> Array:
        """By numpy's indexing; places that stay are zero."""
        return np.asarray(np.where(index >= 0, x[np.maximum(index, 0)], 0), np.uint8)
