"""Depthwise convolution by vectors of channels over padded channels-last images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.binding import Binding
from ptq.kernels.kernel import Array, Buffer, Expr, Parameter, strides_of
from ptq.kernels.requantize import Rounding
from ptq.kernels.view import View

LANES = 16


@dataclass(frozen=True)
class Depthwise:
    """y = requantize(bias + sum x * weight), channel by channel; the zero point is in the bias.

    x: [samples, rows, width, channels] bytes, padded. taps: where the window's pixels are, bytes
    from its corner. narrow: all sums of a channel fit in 16 bits, whatever the codes are.
    y: where pixels [samples, rows, width] begin, or None: one after another.
    paired: x86 multiplies two taps at a time and adds them in 32 bits (vpmaddwd); they are even.
    """

    taps: tuple[int, ...]
    row_bytes: int
    pixel_bytes: int
    out_rows: int
    out_width: int
    channels: int
    narrow: bool
    paired: bool
    rounding: Rounding
    samples: int = 1
    sample_bytes: int = 0
    y: View | None = None

    @property
    def sums(self) -> str:
        """What sums are collected in."""
        return "int16" if self.narrow else "int32"

    def parameters(self) -> tuple[Parameter, ...]:
        """weight int16 [taps, channels], or [pairs, channels, 2]; bias [channels], scales; x, y."""
        last = (self.samples - 1) * self.sample_bytes
        last += (self.out_rows - 1) * self.row_bytes + (self.out_width - 1) * self.pixel_bytes
        return (
            Parameter("weight", "int16", len(self.taps) * self.channels),
            Parameter("bias", "int32", self.channels),
            *self.rounding.scales(self.channels),
            Parameter("x", "uint8", last + self.taps[-1] + self.channels),
            Parameter("y", self.rounding.dtype, self.pixels.size - 1 + self.channels),
        )

    @property
    def pixels(self) -> View:
        """Where each pixel of y begins."""
        shape = (self.samples, self.out_rows, self.out_width)
        return self.y or View(shape, tuple(n * self.channels for n in strides_of(shape)))

    def emit(self, on: Binding, *buffers: Buffer) -> None:
        """One vector of channels after another along a row, so that its weights stay at hand."""
        weight, bias, *scales, x, y = buffers
        add = self._add_pairs if self.paired else self._add_products
        every = tirx.Ramp(0, 1, LANES)
        extents = [self.samples, self.out_rows, self.channels // LANES, self.out_width]
        work = len(self.taps) * LANES
        with on.nest(extents, work, fused=2, neighbours=2) as (sample, row, block, column):
            acc = on.local(self.sums, LANES)
            T.buffer_store(acc, T.broadcast(tirx.const(0, self.sums), LANES), [every])
            corner = sample * self.sample_bytes + row * self.row_bytes + column * self.pixel_bytes
            add(acc, weight, x, block * LANES, corner + block * LANES)
            channels = tirx.Ramp(block * LANES, 1, LANES)
            total = T.Cast(f"int32x{LANES}", acc[every]) + bias[channels]
            code = self.rounding.vector(total, scales, channels, LANES)
            pixel = self.pixels.at([sample, row, column])
            T.buffer_store(y, code, [tirx.Ramp(pixel + block * LANES, 1, LANES)])

    def _add_products(self, acc: Buffer, weight: Buffer, x: Buffer, first: Expr, at: Expr) -> None:
        """A product of a code and a weight fits in 16 bits: 255 * 128 < 2^15."""
        every = tirx.Ramp(0, 1, LANES)
        for number, tap in enumerate(self.taps):
            codes = T.Cast(f"int16x{LANES}", x[tirx.Ramp(at + tap, 1, LANES)])
            factor = weight[tirx.Ramp(number * self.channels + first, 1, LANES)]
            product = T.Cast(f"{self.sums}x{LANES}", codes * factor)
            T.buffer_store(acc, acc[every] + product, [every])

    def _add_pairs(self, acc: Buffer, weight: Buffer, x: Buffer, first: Expr, at: Expr) -> None:
        """Codes of two taps, channel by channel beside each other, half a vector at a time."""
        half = LANES // 2
        for number in range(0, len(self.taps), 2):
            pair = [
                T.Bind(x[tirx.Ramp(at + tap, 1, LANES)]) for tap in self.taps[number : number + 2]
            ]
            for part in range(2):
                order = [side * LANES + part * half + i for i in range(half) for side in range(2)]
                mixed = tirx.Shuffle(pair, [tirx.const(i, "int32") for i in order])
                place = (number // 2 * self.channels + first) * 2 + part * LANES
                factors = weight[tirx.Ramp(place, 1, LANES)]
                sums = T.call_llvm_pure_intrin(
                    f"int32x{half}", "llvm.x86.avx2.pmadd.wd",
                    T.Cast(f"int16x{LANES}", mixed), factors,
                )  # fmt: skip
                lanes = tirx.Ramp(part * half, 1, half)
                T.buffer_store(acc, acc[lanes] + sums, [lanes])

    def oracle(self, weight: Array, bias: Array, *arrays: Array) -> Array:
        """Pixel by pixel in int64."""
        *scales, x = arrays
        taps = weight.reshape(len(self.taps), self.channels).astype(np.int64)
        if self.paired:
            by_pair = weight.reshape(-1, self.channels, 2).transpose(0, 2, 1)
            taps = by_pair.reshape(-1, self.channels).astype(np.int64)
        shape = (self.samples, self.out_rows, self.out_width, self.channels)
        out = np.zeros(shape, self.rounding.dtype)
        for sample, row, column in np.ndindex(out.shape[:3]):
            corner = sample * self.sample_bytes + row * self.row_bytes + column * self.pixel_bytes
            acc = bias.astype(np.int64)
            for factor, tap in zip(taps, self.taps, strict=True):
                acc = acc + factor * x[corner + tap : corner + tap + self.channels]
            out[sample, row, column] = self.rounding.vector_oracle(acc, *scales)
        return out
