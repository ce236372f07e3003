"""Add, multiply and table look-up of codes, over any strides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter
from ptq.kernels.loops import NEVER, by_runs, in_columns
from ptq.kernels.packed_sums import PackedSums
from ptq.kernels.requantize import Rounding
from ptq.kernels.vectors import of_lanes, span, spread
from ptq.kernels.view import View

PERMUTED = 64
"""Codes of a vector of AVX-512."""
TABLES = 64
"""Of a channel each: as many as a first-level cache holds."""
FLOATS = {"float32": 2**24, "float64": 2**53}
"""What they hold exactly, the first that does being the fastest."""


@dataclass(frozen=True)
class Add:
    """y = clamp(z + RNE(((a - za) * m0 + (b - zb) * m1) / 2^S)); a and b seen in y's shape.

    vector_bytes: of x86's vectors, if the processor has AVX2.
    """

    a: View
    b: View
    y: View
    multipliers: tuple[int, int]
    zero_points: tuple[int, int]
    rounding: Rounding
    dtypes: tuple[str, str] = ("uint8", "uint8")
    vector_bytes: int = 0

    def parameters(self) -> tuple[Parameter, ...]:
        """a and b of `dtypes`, y codes."""
        return (
            Parameter("a", self.dtypes[0], self.a.size),
            Parameter("b", self.dtypes[1], self.b.size),
            Parameter("y", self.rounding.dtype, self.y.size),
        )

    @property
    def bound(self) -> int:
        """The largest |sum| of any two codes."""
        terms = zip(self.multipliers, self.zero_points, self.dtypes, strict=True)
        return sum(abs(m) * max(z, np.iinfo(kind).max - z) for m, z, kind in terms)

    @property
    def exact_dtype(self) -> str | None:
        """The float that holds every sum and, shifted, rounds it as integers would."""
        fits = (kind for kind, limit in FLOATS.items() if self.bound < limit)
        return next(fits, None)

    @property
    def packed(self) -> PackedSums | None:
        """How vectors of bytes are added, where that is exact."""
        (m, n), (za, zb), ratio = self.multipliers, self.zero_points, self.rounding.ratio
        assert ratio is not None
        constant, unit = -(m * za + n * zb), ratio[0] * 2.0 ** -ratio[1]
        bytes_only = {*self.dtypes, self.rounding.dtype} == {"uint8"}
        if not (self.vector_bytes and bytes_only):
            return None
        sums = PackedSums(self.vector_bytes, (m, n), constant, unit, self.rounding)
        return sums if sums.exact else None

    def emit(self, on: Binding, a: Buffer, b: Buffer, y: Buffer) -> None:
        """In floats where every sum is exact there, because that is one instruction a step."""
        (m, n), (za, zb), exact = self.multipliers, self.zero_points, self.exact_dtype
        assert self.rounding.ratio is not None
        factor, shift = self.rounding.ratio
        # A power of two: multiplying by it is exact, so only the sum has to be.
        unit = None if exact is None else on.real(factor * 2.0**-shift, exact)
        kind = "int32" if exact == "float32" else exact or "int64"
        by_a, by_b = (
            on.real(number, kind) if kind == "float64" else tirx.const(number, kind)
            for number in (m, n)
        )

        packed = self.packed

        def body(at_a: Expr, at_b: Expr, at_y: Expr, lanes: int) -> None:
            if packed is not None and lanes > 1:
                codes = packed.codes(on, a[span(at_a, lanes)], b[span(at_b, lanes)])
                T.buffer_store(y, codes, [span(at_y, lanes)])
                return
            first = (T.Cast(kind, a[at_a]) - tirx.const(za, kind)) * by_a
            second = (T.Cast(kind, b[at_b]) - tirx.const(zb, kind)) * by_b
            total = first + second
            if exact is None:
                code = self.rounding.integer(total)
            else:
                code = self.rounding.real(T.Cast(exact, total) * unit, dtype=exact)
            T.buffer_store(y, code, [at_y])

        by_runs(on, [self.a, self.b, self.y], self.vector_bytes if packed else NEVER, body)

    def oracle(self, a: Array, b: Array) -> Array:
        """By the reference's rounding."""
        (m, n), (za, zb) = self.multipliers, self.zero_points
        first = (self.a.read(a).astype(np.int64) - za) * m
        second = (self.b.read(b).astype(np.int64) - zb) * n
        return self.rounding.oracle(first + second, 0, 0)


@dataclass(frozen=True)
class Multiply:
    """y = clamp(z + RNE((a - za) * (b - zb) * M / 2^S)); a and b seen in y's shape.

    lanes: elements at a time, in floats; more than one only if `floats_are_exact`.
    """

    a: View
    b: View
    y: View
    zero_points: tuple[int, int]
    rounding: Rounding
    lanes: int = 1

    def parameters(self) -> tuple[Parameter, ...]:
        """a and b uint8, y codes."""
        return (
            Parameter("a", "uint8", self.a.size),
            Parameter("b", "uint8", self.b.size),
            Parameter("y", self.rounding.dtype, self.y.size),
        )

    def emit(self, on: Binding, a: Buffer, b: Buffer, y: Buffer) -> None:
        """The product fits in 17 bits, so that a float32 holds it."""
        za, zb = self.zero_points
        assert self.rounding.ratio is not None
        factor, shift = self.rounding.ratio
        kind = self.rounding.float_dtype
        unit = on.real(factor * 2.0**-shift, kind) if self.lanes > 1 else None

        def body(at_a: Expr, at_b: Expr, at_y: Expr, lanes: int) -> None:
            first, second = (
                T.Cast(of_lanes("int32", lanes), codes[span(at, lanes)]) - spread(T.int32(z), lanes)
                for codes, at, z in ((a, at_a, za), (b, at_b, zb))
            )
            if lanes == 1:
                code = self.rounding.integer(first * second)
            else:
                first, second = (T.Cast(of_lanes(kind, lanes), part) for part in (first, second))
                scaled = first * second * spread(unit, lanes)
                code = self.rounding.real(scaled, lanes)
            T.buffer_store(y, code, [span(at_y, lanes)])

        most = self.lanes if self.lanes > 1 else NEVER
        by_runs(on, [self.a, self.b, self.y], most, body)

    def oracle(self, a: Array, b: Array) -> Array:
        """By the reference's rounding."""
        za, zb = self.zero_points
        product = (self.a.read(a).astype(np.int64) - za) * (self.b.read(b).astype(np.int64) - zb)
        return self.rounding.oracle(product, 0, 0)


def permuted(table: Buffer, codes: Expr) -> Expr:
    """table[codes], uint8x64: one permutation (vpermi2b) of two vectors for each half."""
    index = T.Bind(T.reinterpret("int8x64", codes))
    quarters = [T.reinterpret("int8x64", table[span(64 * i, PERMUTED)]) for i in range(4)]
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    low, high = (
        T.call_llvm_pure_intrin("int8x64", name, first, index, second)
        for first, second in (quarters[:2], quarters[2:])
    )
    upper = codes >= T.broadcast(T.uint8(128), PERMUTED)
    return T.reinterpret("uint8x64", tirx.Select(upper, high, low))


@dataclass(frozen=True)
class Lookup:
    """y = table[channel, x].

    channel: where the row of an element begins in the table: stride 256 along the channel axis,
    0 along the others; all strides are 0 if there is one table.
    permutes: the processor has AVX512-VBMI, which looks up 64 codes in a table of bytes at a time.
    """

    x: View
    channel: View
    y: View
    dtype: str = "uint8"
    permutes: bool = False

    def parameters(self) -> tuple[Parameter, ...]:
        """table of `dtype` [rows * 256], x uint8, y of `dtype`."""
        return (
            Parameter("table", self.dtype, self.channel.size + 255),
            Parameter("x", "uint8", self.x.size),
            Parameter("y", self.dtype, self.y.size),
        )

    def emit(self, on: Binding, table: Buffer, x: Buffer, y: Buffer) -> None:
        """One load a code, or permutations of a table that stays in registers."""
        if self.permutes and self.dtype == "uint8" and not any(self.channel.strides):

            def vector(at_x: Expr, at_y: Expr, lanes: int) -> None:
                code = x[span(at_x, lanes)]
                found = permuted(table, code) if lanes > 1 else table[T.Cast("int32", code)]
                T.buffer_store(y, found, [span(at_y, lanes)])

            by_runs(on, [self.x, self.y], PERMUTED, vector)
            return

        def body(at_x: Expr, row: Expr, at_y: Expr) -> None:
            T.buffer_store(y, table[row + T.Cast("int32", x[at_x])], [at_y])

        in_columns(on, [self.x, self.channel, self.y], TABLES, body)

    def oracle(self, table: Array, x: Array) -> Array:
        """By numpy's indexing."""
        rows = self.channel.read(np.arange(self.channel.size))
        return np.asarray(table[rows + self.x.read(x)])
