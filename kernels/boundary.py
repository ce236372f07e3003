"""Quantise and dequantise: the float ends of the program, and its changes of layout there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.grid import container
from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.loops import elementwise
from ptq.kernels.requantize import clamp
from ptq.kernels.view import View


@dataclass(frozen=True)
class Quantize:
    """code = clamp(RNE(x / scale) + z, low, high), a true float32 division."""

    x: View
    y: View
    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return str(np.dtype(container(self.high)))

    def parameters(self) -> tuple[Parameter, ...]:
        """x float32, y codes."""
        return Parameter("x", "float32", self.x.size), Parameter("y", self.dtype, self.y.size)

    def emit(self, on: Binding, x: Buffer, y: Buffer) -> None:
        """Clamps before it converts, so that large values stay in range."""
        scale, zero = on.real(self.scale), T.float32(self.zero_point)

        def body(at_x: Expr, at_y: Expr) -> None:
            rounded = tirx.nearbyint(x[at_x] / scale) + zero
            code = clamp(rounded, T.float32(self.low), T.float32(self.high))
            T.buffer_store(y, T.Cast(self.dtype, T.Cast("int32", code)), [at_y])

        elementwise(on, [self.x, self.y], body)

    def oracle(self, x: Array) -> Array:
        """As ActivationPlan.quantize."""
        codes = np.rint(self.x.read(x) / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, self.low, self.high), self.dtype)


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
