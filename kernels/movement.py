"""Codes that only change their place: strided copies, a fill, and a table of places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter, strides_of
from ptq.kernels.loops import are_pixels, by_pixels, elementwise
from ptq.kernels.requantize import clamp
from ptq.kernels.vectors import span
from ptq.kernels.view import View

MIXED = 8
"""Stretches that are in turns; of more, vectors take as many loads and shuffles as bytes do."""


@dataclass(frozen=True)
class Copy:
    """y = x; both views have one shape. Elements of y's buffer outside its view stay.

    mixes: stretches of x that lie in turns in y are mixed in vectors, as a CPU is faster at.
    """

    x: View
    y: View
    dtype: str = "uint8"
    mixes: bool = False

    def parameters(self) -> tuple[Parameter, ...]:
        """x and y of `dtype`."""
        return Parameter("x", self.dtype, self.x.size), Parameter("y", self.dtype, self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Contiguous stretches become one loop."""
        views = [self.x, self.y]
        if self.mixes and are_pixels(views, MIXED):
            by_pixels(on, views, MIXED, lambda at_x, at_y, lanes: _mix(x, y, at_x, at_y, lanes))
            return

        def body(at_x: Expr, at_y: Expr) -> None:
            T.buffer_store(y, x[at_x], [at_y])

        elementwise(on, views, body)

    def oracle(self, x: Array) -> Array:
        """The view itself."""
        return self.x.read(x)


def _mix(x: Buffer, y: Buffer, starts: Sequence[Expr], at: Expr, lanes: int) -> None:
    """Vectors of x, lane by lane beside each other in y."""
    parts = [T.Bind(x[span(start, lanes)]) for start in starts]
    order = [part * lanes + lane for lane in range(lanes) for part in range(len(parts))]
    mixed = tirx.Shuffle(parts, [tirx.const(i, "int32") for i in order])
    T.buffer_store(y, mixed, [span(at, lanes * len(parts))])


@dataclass(frozen=True)
class Widen:
    """y = x - zero_point in 16 bits; both views have one shape. Other elements of y stay."""

    x: View
    y: View
    zero_point: int

    def parameters(self) -> tuple[Parameter, ...]:
        """x uint8, y int16."""
        return Parameter("x", "uint8", self.x.size), Parameter("y", "int16", self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """In y's order of memory."""
        zero = T.int16(self.zero_point)

        def body(at_x: Expr, at_y: Expr) -> None:
            T.buffer_store(y, T.Cast("int16", x[at_x]) - zero, [at_y])

        elementwise(on, [self.x, self.y], body)

    def oracle(self, x: Array) -> Array:
        """By the view."""
        return np.asarray(self.x.read(x).astype(np.int16) - self.zero_point, np.int16)


@dataclass(frozen=True)
class Fill:
    """y = value everywhere."""

    y: View
    value: int
    dtype: str = "uint8"

    def parameters(self) -> tuple[Parameter, ...]:
        """y of `dtype`."""
        return (Parameter("y", self.dtype, self.y.size),)

    def emit(self, on: Binding, y: Buffer) -> None:
        """One loop."""
        value = tirx.const(self.value, self.dtype)
        elementwise(on, [self.y], lambda at: T.buffer_store(y, value, [at]))

    def oracle(self) -> Array:
        """A constant array."""
        return np.full(self.y.shape, self.value, self.dtype)


@dataclass(frozen=True)
class Border:
    """y = value in the frame of an image; what is inside stays.

    outer: y's [samples, rows, width, channels] with the frame, dense. before, after: its rows and
    pixels on either side.
    """

    outer: tuple[int, int, int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    value: int

    def parameters(self) -> tuple[Parameter, ...]:
        """y uint8."""
        return (Parameter("y", "uint8", int(np.prod(self.outer, dtype=np.int64))),)

    def emit(self, on: Binding, y: Buffer) -> None:
        """Stretches that are contiguous: rows above, the ends of two neighbouring rows, below."""
        samples, rows, *_ = self.outer
        sample, row, pixel, _ = strides_of(self.outer)
        (top, left), (bottom, right) = self.before, self.after
        inner = rows - top - bottom
        above, between, below = top * row + left * pixel, (left + right) * pixel, bottom * row
        with on.nest([samples], above + inner * between + below) as (number,):
            start = number * sample
            self._fill(y, start, above)
            if between:
                with T.serial(0, inner - 1) as line:
                    self._fill(y, start + (top + line + 1) * row - right * pixel, between)
            end = (top + inner) * row - right * pixel
            self._fill(y, start + end, right * pixel + below)

    def _fill(self, y: Buffer, start: Expr, size: int) -> None:
        if size:
            with T.serial(0, size) as place:
                T.buffer_store(y, T.uint8(self.value), [start + place])

    def oracle(self) -> Array:
        """The image with its frame, and zeros inside."""
        out = np.full(self.outer, self.value, np.uint8)
        (top, left), (bottom, right) = self.before, self.after
        _, rows, width, _ = self.outer
        out[:, top : rows - bottom, left : width - right] = 0
        return out


@dataclass(frozen=True)
class Pad:
    """y = x with a frame of `value`: both at once, as a GPU starts one kernel sooner than two.

    inner: x's [samples, rows, width, groups, channels]; outer: y's [samples, tall, wide, groups,
    room], both dense; what a group has beyond its channels is `value`, too. before: rows and pixels
    of the frame.
    """

    inner: tuple[int, int, int, int, int]
    outer: tuple[int, int, int, int, int]
    before: tuple[int, int]
    value: int

    def parameters(self) -> tuple[Parameter, ...]:
        """x and y uint8."""
        x, y = (int(np.prod(shape, dtype=np.int64)) for shape in (self.inner, self.outer))
        return Parameter("x", "uint8", x), Parameter("y", "uint8", y)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """In y's order of memory."""
        from_x, to_y = (
            View(self.inner, strides_of(self.inner)),
            View(self.outer, strides_of(self.outer)),
        )
        with on.nest(self.outer) as (sample, row, column, group, channel):
            places = [row - self.before[0], column - self.before[1], channel]
            sizes = (self.inner[1], self.inner[2], self.inner[4])
            inside = tirx.all(
                *(test for p, n in zip(places, sizes, strict=True) for test in (p >= 0, p < n))
            )
            code = on.local("uint8")
            T.buffer_store(code, T.uint8(self.value), [0])
            with T.If(inside), T.Then():
                at = from_x.at([sample, places[0], places[1], group, channel])
                T.buffer_store(code, x[at], [0])
            T.buffer_store(y, code[0], [to_y.at([sample, row, column, group, channel])])

    def oracle(self, x: Array) -> Array:
        """By numpy's slices."""
        out = np.full(self.outer, self.value, np.uint8)
        top, left = self.before
        _, rows, width, _, channels = self.inner
        out[:, top : top + rows, left : left + width, :, :channels] = x.reshape(self.inner)
        return out


@dataclass(frozen=True)
class Take:
    """y[i] = x[index[i]] where index is not negative; other elements stay.

    size: of x's buffer. y: one axis.
    """

    size: int
    y: View
    dtype: str = "uint8"

    def parameters(self) -> tuple[Parameter, ...]:
        """index int32, x and y of `dtype`."""
        return (
            Parameter("index", "int32", self.y.shape[0]),
            Parameter("x", self.dtype, self.size),
            Parameter("y", self.dtype, self.y.size),
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
        return np.asarray(np.where(index >= 0, x[np.maximum(index, 0)], 0), self.dtype)


@dataclass(frozen=True)
class Rows:
    """y[i] = x[index[i]]: rows of `width` codes of a matrix; a negative index counts from its end.

    index: where the indices are. An index that has no row reads the first or last one.
    """

    index: View
    rows: int
    width: int
    index_dtype: str
    dtype: str = "uint8"

    def parameters(self) -> tuple[Parameter, ...]:
        """index of `index_dtype`, x and y of `dtype`."""
        count = int(np.prod(self.index.shape, dtype=np.int64))
        return (
            Parameter("index", self.index_dtype, self.index.size),
            Parameter("x", self.dtype, self.rows * self.width),
            Parameter("y", self.dtype, count * self.width),
        )

    def emit(self, on: Binding, index: Buffer, x: Buffer, y: Buffer) -> None:
        """One copy a row."""
        dense = strides_of(self.index.shape)
        with on.nest(self.index.shape, self.width) as i:
            chosen = on.local(self.index_dtype)
            T.buffer_store(chosen, index[self.index.at(i)], [0])
            rows, zero = (tirx.const(n, self.index_dtype) for n in (self.rows, 0))
            with T.If(chosen[0] < zero), T.Then():
                T.buffer_store(chosen, chosen[0] + rows, [0])
            row = T.Cast("int32", clamp(chosen[0], zero, rows - tirx.const(1, self.index_dtype)))
            to = View(self.index.shape, dense).at(i)
            with T.serial(0, self.width) as column:
                T.buffer_store(y, x[row * self.width + column], [to * self.width + column])

    def oracle(self, index: Array, x: Array) -> Array:
        """By numpy's indexing."""
        chosen = self.index.read(index).astype(np.int64)
        chosen = np.clip(np.where(chosen < 0, chosen + self.rows, chosen), 0, self.rows - 1)
        return np.asarray(x.reshape(self.rows, self.width)[chosen])
