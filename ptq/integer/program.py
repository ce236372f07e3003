"""The integer program: the one meaning of a quantised network.

A program is a list of steps over two kinds of values. *Codes* are uint8 or uint16 tensors with an
`ActivationPlan`; *raw* values are what the float model has at its boundary, its shape arithmetic,
and whatever stays a float island. A value keeps the float graph's name in both kinds.
Steps are plain data; the numpy reference and every target have one function for each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.arithmetic import Requantizer
from ptq.plan import ActivationPlan, WeightPlan


@dataclass(frozen=True)
class Ref:
    """A value as an operand: its codes, or raw."""

    name: str
    codes: bool


@dataclass(frozen=True)
class Quantize:
    """codes[value] from raw[value] float32, by the value's ActivationPlan."""

    name: str
    value: str


@dataclass(frozen=True)
class Dequantize:
    """raw[value] float32 from codes[value]."""

    name: str
    value: str


@dataclass(frozen=True)
class Convolve:
    """output = requantize(sum (input - zero_point) * weight + bias), N-d, NCHW.

    weight: int8 [out, in / groups, *kernel]; bias: int32 [out]; requantizer per out channel.
    stored: how the weight is stored (packed codes and table), or None for plain int8.
    """

    name: str
    input: str
    output: str
    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    requantizer: Requantizer
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int
    weight_scale: npt.NDArray[np.float32]
    stored: WeightPlan | None = None


@dataclass(frozen=True)
class Gemm:
    """output = requantize((input - zero_point) @ weight + bias); input [..., k].

    weight: int8 [k, n]; bias: int32 [n] or None; requantizer per column.
    stored: the WeightPlan; its codes have the float tensor's layout, transposed if `transposed`.
    """

    name: str
    input: str
    output: str
    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32] | None
    requantizer: Requantizer
    weight_scale: npt.NDArray[np.float32]
    stored: WeightPlan | None = None
    transposed: bool = False


@dataclass(frozen=True)
class MatMul:
    """output = requantize((a - za) @ (b - zb)), batched, both operands codes."""

    name: str
    a: str
    b: str
    output: str
    requantizer: Requantizer


@dataclass(frozen=True)
class Add:
    """output = clamp(z + RNE(((a - za) * multipliers[0] + (b - zb) * multipliers[1]) / 2^shift)).

    A subtraction has a negative second multiplier. Operands broadcast. The requantizer's
    multiplier is 1 and its shift is common to both.
    """

    name: str
    a: str
    b: str
    output: str
    multipliers: tuple[int, int]
    requantizer: Requantizer


@dataclass(frozen=True)
class Multiply:
    """output = requantize((a - za) * (b - zb)); operands broadcast."""

    name: str
    a: str
    b: str
    output: str
    requantizer: Requantizer


LEVELS = "levels"
"""The function of a Lookup that takes codes to the nearest ones of an unequal grid."""


@dataclass(frozen=True)
class Lookup:
    """output = table[input], or table[channel, input] along `axis`.

    table: uint8 or uint16, [256] or [channels, 256].
    function: what the table computes ("Sigmoid", "requantize", LEVELS), for people and gradients.
    """

    name: str
    input: str
    output: str
    table: npt.NDArray[np.uint8]
    axis: int | None = None
    function: str = ""


@dataclass(frozen=True)
class Mean:
    """output = requantize(sum over axes of (input - zero_point)); 1 / count is in the multiplier.

    count: number of elements summed, static.
    """

    name: str
    input: str
    output: str
    axes: tuple[int, ...]
    keepdims: bool
    count: int
    requantizer: Requantizer


@dataclass(frozen=True)
class Softmax:
    """Integer softmax along `axis`.

    e = exp_table[max - input] over integers, s = sum e,
    output = min(high, RNE(e * numerator / s)): exact, half to even.
    All of it stays below 2^31 while the axis has fewer than 2^15 elements.

    exp_table: int32 [256], entry d is round(2^15 * exp(-d * scale)).
    numerator: output codes of probability one (1 / output scale, an integer, at most 256).
    keep: raw bool that broadcasts to the input, or None: e is zero where it is false, max is over
        the others; a row that keeps nothing gives zeros (s is at least 1).
    """

    name: str
    input: str
    output: str
    axis: int
    exp_table: npt.NDArray[np.int32]
    numerator: int
    high: int
    keep: Ref | None = None


@dataclass(frozen=True)
class Normalize:
    """Layer norm (`centred`) or RMS norm of the last axis, of n elements; d = input - zero_point.

    centred: u = 2^mean_bits d - floor(2^mean_bits sum d / n + 1/2); else u = d. S = sum u^2.
    root = max(1, isqrt(S * 4^shift + epsilon)), inverse = 2^inverse_bits // root,
    output = requantize(u * inverse * gain + offset).
    No product reaches 2^53, nothing under the root 2^52 (see lower_norm.py, also for the numbers).

    gain, offset: [n] int64; the requantizer's multiplier is 1.
    float_epsilon: what `epsilon` stands for, for targets that print float operators.
    """

    name: str
    input: str
    output: str
    centred: bool
    mean_bits: int
    epsilon: int
    shift: int
    inverse_bits: int
    gain: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    requantizer: Requantizer
    float_epsilon: float

    @property
    def tieless(self) -> bool:
        """True if no sum is halfway between two codes: all are odd, and halves are even."""
        odd = (self.gain % 2 == 0).all() and (self.offset % 2 == 1).all()
        return bool(odd and self.requantizer.shift >= 2)


@dataclass(frozen=True)
class Apply:
    """An ONNX node applied as it is.

    To codes when it only moves them (Reshape, MaxPool, ...; `inputs` may include raw shapes and
    indices), to raw values when it is shape arithmetic or part of a float island.

    island: why it computes in float, or None when it does not.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[Ref | None, ...]
    outputs: tuple[Ref, ...]
    attributes: tuple[ir.Attr, ...] = ()
    island: str | None = None


Step = (
    Quantize
    | Dequantize
    | Convolve
    | Gemm
    | MatMul
    | Add
    | Multiply
    | Lookup
    | Mean
    | Softmax
    | Normalize
    | Apply
)


@dataclass(frozen=True)
class Certificate:
    """What was proved about a step, and what was not.

    accumulator_bound: largest |accumulator| over all inputs; stays below 2^31, or below 2^53 where
        accumulator_bits are 64.
    exact: integer and float32 requantisation are provably the same function.
    pair_safe: no u8 x s8 pair sum reaches 2^15, so CPUs without VNNI do not saturate.
    """

    step: str
    accumulator_bound: int
    exact: bool
    pair_safe: bool
    note: str = ""
    accumulator_bits: int = 32


@dataclass(frozen=True)
class Boundary:
    """An input or output of the program."""

    name: str
    dtype: ir.DataType
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Program:
    """Steps in order, and the types of their values.

    codes: value name -> ActivationPlan of its codes.
    constants: raw constants (shapes, indices, float-island weights).
    code_constants: constant operands held as codes (uint8 arrays).
    """

    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    steps: tuple[Step, ...]
    codes: Mapping[str, ActivationPlan]
    constants: Mapping[str, npt.NDArray[np.generic] | ir.TensorProtocol] = field(
        default_factory=dict
    )
    code_constants: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    certificates: tuple[Certificate, ...] = ()
    opset: int = 21


def before_levels(program: Program) -> Mapping[str, str]:
    """Values on their way to the levels of an unequal grid -> the value that they become."""
    lookups = [s for s in program.steps if isinstance(s, Lookup) and s.function == LEVELS]
    return {step.input: step.output for step in lookups}
