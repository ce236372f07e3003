"""Quantise and dequantise: the float ends of the program, and its changes of layout there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.grid import container
from ptq.kernels.binding import Binding
from ptq.kernels.dot import QUAD
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.loops import by_pixels, elementwise
from ptq.kernels.requantize import clamp
from ptq.kernels.vectors import of_lanes, span, spread
from ptq.kernels.view import View

ROUNDER = np.float32(1.5 * 2**23)
"""Numbers below 2^22, added to it, are rounded half to even, to integers in its last bits."""


@dataclass(frozen=True)
class Quantize:
    """code = clamp(RNE(x / scale) + z, low, high), a true float32 division.

    fused: divides by a * b + c with one rounding, as the processor has it: scales between 2^-60
    and 2^60, so that nothing on the way is too small.
    """

    x: View
    y: View
    scale: float
    zero_point: int
    low: int
    high: int
    fused: bool = False

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return str(np.dtype(container(self.high)))

    def parameters(self) -> tuple[Parameter, ...]:
        """x float32, y codes."""
        return Parameter("x", "float32", self.x.size), Parameter("y", self.dtype, self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Clamps before it converts, so that large values stay in range."""
        if self.fused:
            most = QUAD if self.dtype == "uint8" else 1
            by_pixels(on, [self.x, self.y], most, self._vectors(on, x, y))
            return
        scale, zero = on.real(self.scale), T.float32(self.zero_point)

        def body(at_x: Expr, at_y: Expr) -> None:
            rounded = tirx.nearbyint(x[at_x] / scale) + zero
            code = clamp(rounded, T.float32(self.low), T.float32(self.high))
            T.buffer_store(y, T.Cast(self.dtype, T.Cast("int32", code)), [at_y])

        elementwise(on, [self.x, self.y], body)

    def _vectors(
        self, on: Binding, x: Buffer, y: Buffer
    ) -> Callable[[list[Expr], Expr, int], None]:
        """Divides by the reciprocal and two corrections, which leave the nearest float32.

        A correctly rounded reciprocal corrects a quotient within one place of x / scale to the
        nearest one (P. Markstein, IBM J. Res. Dev. 34, 1990); the first correction brings it there.
        What is clamped before the division has the codes `low` and `high` at its ends, far from a
        half.
        """
        scale = np.float32(self.scale)
        ends = [np.float32(code - self.zero_point) * scale for code in (self.low, self.high)]
        reals = [on.real(float(number)) for number in (*ends, scale, np.float32(1) / scale)]

        def rounded(at: Expr, lanes: int) -> Expr:
            low, high, by, inverse = (spread(number, lanes) for number in reals)
            value = clamp(x[span(at, lanes)], low, high)
            quotient = value * inverse
            for _ in range(2):
                rest = _fma(-quotient, by, value, lanes)
                quotient = _fma(rest, inverse, quotient, lanes)
            moved = quotient + spread(T.float32(float(ROUNDER)), lanes)
            return T.reinterpret(of_lanes("uint32", lanes), moved)

        def body(at_x: list[Expr], at_y: Expr, lanes: int) -> None:
            words = [rounded(at, lanes) for at in at_x]
            offset = self.zero_point - int(ROUNDER.view(np.uint32))
            if len(words) > 1:
                code = _interleaved(words, offset, lanes)
            else:
                code = words[0] + spread(tirx.const(offset % 2**32, "uint32"), lanes)
                code = T.Cast(of_lanes(self.dtype, lanes), code)
            T.buffer_store(y, code, [span(at_y, lanes * len(words))])

        return body

    def oracle(self, x: Array) -> Array:
        """As ActivationPlan.quantize."""
        codes = np.rint(self.x.read(x) / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, self.low, self.high), self.dtype)


def _interleaved(words: list[Expr], offset: int, lanes: int) -> Expr:
    """Bytes, lane by lane: all that is in up to four vectors of uint32, plus `offset`.

    They meet in one vector by sums, since LLVM would make slower permutations of masks.
    """
    total = sum(offset << 8 * number for number in range(len(words))) % 2**32
    every = spread(tirx.const(total, "uint32"), lanes)
    for number, word in enumerate(words):
        every = every + T.shift_left(word, spread(tirx.const(8 * number, "uint32"), lanes))
    order = [QUAD * lane + number for lane in range(lanes) for number in range(len(words))]
    quads = T.reinterpret(f"uint8x{QUAD * lanes}", every)
    return tirx.Shuffle([quads], [tirx.const(i, "int32") for i in order])


def _fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    return T.call_llvm_pure_intrin(of_lanes("float32", lanes), "llvm.fma", a, b, c)


@dataclass(frozen=True)
class Dequantize:
    """y = (code - z) * scale in float32."""

    x: View
    y: View
    scale: float
    zero_point: int
    dtype: str = "uint8"

    def parameters(self) -> tuple[Parameter, ...]:
        """x codes of `dtype`, y float32."""
        return Parameter("x", self.dtype, self.x.size), Parameter("y", "float32", self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Subtracts in integers, which is exact in float32 as well."""
        scale = on.real(self.scale)

        def body(at_x: Expr, at_y: Expr) -> None:
            centred = T.Cast("int32", x[at_x]) - T.int32(self.zero_point)
            T.buffer_store(y, T.Cast("float32", centred) * scale, [at_y])

        elementwise(on, [self.x, self.y], body)

    def oracle(self, x: Array) -> Array:
        """As ActivationPlan.dequantize."""
        centred = self.x.read(x).astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(centred * np.float32(self.scale), np.float32)
