"""The reference: what the integer program means, in numpy.

Only exact integer arithmetic between the boundary's quantise and dequantise; sums run through BLAS
in float64 where their bound is far below 2^53. Nothing here knows about any target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer import movement
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import (
    Add,
    Apply,
    Convolve,
    Dequantize,
    Gemm,
    Lookup,
    MatMul,
    Mean,
    Multiply,
    Normalize,
    Program,
    Quantize,
    Ref,
    Softmax,
    Step,
)

Array = npt.NDArray[Any]
Requantize = Callable[[Requantizer, npt.NDArray[np.int64], int | None], npt.NDArray[np.uint8]]


@dataclass
class _Values:
    """Everything computed so far."""

    program: Program
    requantize: Requantize
    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    raw: dict[str, Array] = field(default_factory=dict)

    def centred(self, name: str) -> npt.NDArray[np.int64]:
        """code - zero_point, int64."""
        return self.codes[name].astype(np.int64) - self.program.codes[name].zero_point

    def read(self, ref: Ref | None) -> Array | None:
        """An operand of an Apply step."""
        if ref is None:
            return None
        if ref.codes:
            return self.codes[ref.name]
        if ref.name in self.raw:
            return self.raw[ref.name]
        constant = self.program.constants[ref.name]
        return constant if isinstance(constant, np.ndarray) else constant.numpy()


class Reference:
    """Interprets an integer program exactly; the oracle of every target.

    requantize: Requantizer.simulate computes requantisation in float32 instead, the way float
    runtimes do, to test that the certificates hold.
    """

    def __init__(self, program: Program, requantize: Requantize = Requantizer.apply) -> None:
        self.program = program
        self.requantize = requantize

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raw outputs by name, from raw inputs by name."""
        values = self._execute(feeds)
        return {b.name: self._output(values, b.name) for b in self.program.outputs}

    def run_codes(self, feeds: Mapping[str, Array]) -> dict[str, npt.NDArray[np.uint8]]:
        """Every code value by name, uint8, from raw inputs by name."""
        return self._execute(feeds).codes

    def run_values(
        self, feeds: Mapping[str, Array]
    ) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, Array]]:
        """Every code value and every raw value by name, from raw inputs by name."""
        values = self._execute(feeds)
        return values.codes, values.raw

    def _execute(self, feeds: Mapping[str, Array]) -> _Values:
        values = _Values(
            self.program, self.requantize, dict(self.program.code_constants), dict(feeds)
        )
        for step in self.program.steps:
            RUN[type(step)](values, step)
        return values

    def _output(self, values: _Values, name: str) -> Array:
        array = values.read(Ref(name, codes=False))
        assert array is not None
        return array


def _quantize(values: _Values, step: Quantize) -> None:
    values.codes[step.value] = values.program.codes[step.value].quantize(values.raw[step.value])


def _dequantize(values: _Values, step: Dequantize) -> None:
    grid = values.program.codes[step.value]
    values.raw[step.value] = grid.dequantize(values.codes[step.value])


def _convolve(values: _Values, step: Convolve) -> None:
    acc = convolve(values.centred(step.input), step)
    acc = acc + step.bias.astype(np.int64).reshape(1, -1, *[1] * (acc.ndim - 2))
    values.codes[step.output] = values.requantize(step.requantizer, acc, 1)


def convolve(x: npt.NDArray[np.int64], step: Convolve) -> npt.NDArray[np.int64]:
    """Integer convolution of x [n, c, *spatial] (zero points removed) -> [n, out, *spatial].

    One matrix product a kernel position, in the narrowest float that holds every sum exactly.
    """
    weight, groups, n = step.weight, step.groups, step.weight.ndim - 2
    kind = exact_float(weight.reshape(len(weight), -1))
    room = [(0, 0), (0, 0), *((step.pads[i], step.pads[i + n]) for i in range(n))]
    padded = np.pad(x.astype(kind), room)
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], step.dilations, strict=True)]
    sizes = [
        (size - e) // s + 1
        for size, e, s in zip(padded.shape[2:], extent, step.strides, strict=True)
    ]
    acc = np.zeros((len(x), groups, len(weight) // groups, int(np.prod(sizes))), kind)
    for position in np.ndindex(*weight.shape[2:]):
        starts = [p * d for p, d in zip(position, step.dilations, strict=True)]
        picked = tuple(
            slice(start, start + (size - 1) * stride + 1, stride)
            for start, size, stride in zip(starts, sizes, step.strides, strict=True)
        )
        window = padded[(slice(None), slice(None), *picked)]
        window = window.reshape(len(x), groups, weight.shape[1], -1)
        factor = weight[(slice(None), slice(None), *position)].astype(kind)
        factor = factor.reshape(groups, -1, weight.shape[1])
        depthwise = weight.shape[1] == 1
        acc += np.asarray(factor * window if depthwise else np.matmul(factor, window), kind)
    return acc.reshape(len(x), len(weight), *sizes).astype(np.int64)


def exact_float(rows: npt.NDArray[np.int8]) -> type[np.float32] | type[np.float64]:
    """The narrowest float type in which sums of 8-bit codes times rows [channels, k] are exact."""
    reach = np.abs(rows.astype(np.int64)).sum(axis=1).max(initial=0) * 255
    return np.float32 if reach < 2**24 else np.float64


def _gemm(values: _Values, step: Gemm) -> None:
    kind = exact_float(step.weight.T)
    acc = np.matmul(values.centred(step.input).astype(kind), step.weight.astype(kind))
    acc = np.asarray(acc).astype(np.int64)
    if step.bias is not None:
        acc += step.bias
    values.codes[step.output] = values.requantize(step.requantizer, acc, -1)


def _matmul(values: _Values, step: MatMul) -> None:
    acc = np.matmul(values.centred(step.a).astype(float), values.centred(step.b).astype(float))
    values.codes[step.output] = values.requantize(
        step.requantizer, np.asarray(acc).astype(np.int64), None
    )


def _add(values: _Values, step: Add) -> None:
    first, second = step.multipliers
    acc = values.centred(step.a) * first + values.centred(step.b) * second
    wide = any(values.codes[name].dtype != np.uint8 for name in (step.a, step.b))
    requantize = Requantizer.apply if wide else values.requantize
    values.codes[step.output] = requantize(step.requantizer, acc, None)


def _multiply(values: _Values, step: Multiply) -> None:
    acc = values.centred(step.a) * values.centred(step.b)
    values.codes[step.output] = values.requantize(step.requantizer, acc, None)


def _lookup(values: _Values, step: Lookup) -> None:
    x = values.codes[step.input]
    if step.axis is None:
        values.codes[step.output] = step.table[x]
        return
    shape = [1] * x.ndim
    shape[step.axis] = -1
    channel = np.arange(len(step.table)).reshape(shape)
    values.codes[step.output] = step.table[channel, x]


def _mean(values: _Values, step: Mean) -> None:
    acc = values.centred(step.input).sum(axis=step.axes, keepdims=step.keepdims)
    values.codes[step.output] = values.requantize(step.requantizer, np.asarray(acc), None)


def _softmax(values: _Values, step: Softmax) -> None:
    x = values.codes[step.input].astype(np.int64)
    keep = values.read(step.keep)
    kept = x if keep is None else x * keep  # no code is below that of what is masked
    distance = kept.max(axis=step.axis, keepdims=True) - x
    e = step.exp_table.astype(np.int64)[np.maximum(distance, 0)]
    e = e if keep is None else e * keep
    total = np.maximum(e.sum(axis=step.axis, keepdims=True), 1)
    out, rest = np.divmod(2 * e * step.numerator + total, 2 * total)
    out -= (rest == 0) & (out % 2 == 1)  # a tie, rounded up to an odd code
    values.codes[step.output] = np.minimum(out, step.high).astype(np.uint8)


def _normalize(values: _Values, step: Normalize) -> None:
    d, n = values.centred(step.input), len(step.gain)
    if step.centred:
        d = d << step.mean_bits
        d = d - (2 * d.sum(axis=-1, keepdims=True) + n) // (2 * n)
    square = (d * d).sum(axis=-1, keepdims=True)
    root = np.floor(np.sqrt(((square << 2 * step.shift) + step.epsilon).astype(np.float64)))
    inverse = (1 << step.inverse_bits) // np.maximum(root.astype(np.int64), 1)
    acc = d * inverse * step.gain + step.offset
    # Never simulated in float32: its products have up to 53 bits, and targets know that.
    values.codes[step.output] = step.requantizer.apply(acc)


def _apply(values: _Values, step: Apply) -> None:
    operands = [values.read(ref) for ref in step.inputs]
    results = movement.apply(step, operands, values.program.opset, values.raw)
    for ref, result in zip(step.outputs, results, strict=True):
        (values.codes if ref.codes else values.raw)[ref.name] = result


RUN: dict[type[Step], Callable[[_Values, Any], None]] = {
    Quantize: _quantize,
    Dequantize: _dequantize,
    Convolve: _convolve,
    Gemm: _gemm,
    MatMul: _matmul,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
    Mean: _mean,
    Softmax: _softmax,
    Normalize: _normalize,
    Apply: _apply,
}
