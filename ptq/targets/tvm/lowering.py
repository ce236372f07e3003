"""The state of one lowering: kernel calls in order, constants in one blob, views of all tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.flow import reads, writes
from ptq.integer.program import Program, Step
from ptq.kernels import dot
from ptq.kernels.kernel import Kernel
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.view import View
from ptq.plan import ActivationPlan
from ptq.targets.tvm.frames import Frame, frames
from ptq.targets.tvm.layout import channels_last, view_of
from ptq.targets.tvm.trace import Trace

Array = npt.NDArray[Any]
Rule = Callable[["Lowering", Any], None]
ALIGNMENT = 64


@dataclass(frozen=True)
class Stored:
    """A constant: `offset` bytes into the blob."""

    offset: int


@dataclass(frozen=True)
class Tensor:
    """Codes or scratch in the arena."""

    name: str


@dataclass(frozen=True)
class Feed:
    """An input of the program, float32."""

    name: str


@dataclass(frozen=True)
class Result:
    """An output of the program, float32."""

    name: str


Operand = Stored | Tensor | Feed | Result


@dataclass(frozen=True)
class Call:
    """One kernel call of a step; operands in the order of the kernel's parameters."""

    step: str
    kernel: Kernel
    operands: tuple[Operand, ...]


@dataclass
class Lowering:
    """Collects the calls of a program.

    features: what the target's processor has, for the choice of kernels.
    views: of tensors that their kernels lay out otherwise than `layout` has it.
    frames: around images, which the next convolution reads with them.
    passing: tensors that only moves read: where their elements are in another one, row-major.
    weights: how they are stored, as in `CompileOptions`. tuner: gives the tile of a kernel.
    plain: step -> why it has plain loops where others have a fast kernel.
    """

    program: Program
    trace: Trace
    features: frozenset[str] = frozenset()
    weights: str = "auto"
    tuner: Callable[[PackedConvolution], Tile] | None = None
    calls: list[Call] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    blob: bytearray = field(default_factory=bytearray)
    plain: dict[str, str] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)
    passing: dict[str, tuple[str, npt.NDArray[np.int64]]] = field(default_factory=dict)
    _stored: dict[tuple[str, bytes], Stored] = field(default_factory=dict)
    _last: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        ranks = {name: len(shape) for name, shape in self.trace.codes.items()}
        self._last = channels_last(self.program, ranks)
        if self.vectors:
            self.frames = frames(self.program, self.trace.codes, self._last)

    @cached_property
    def readers(self) -> dict[str, list[Step]]:
        """The steps that read each tensor of codes."""
        found: dict[str, list[Step]] = {}
        for step in self.program.steps:
            for name in {ref.name for ref in reads(step) if ref.codes}:
                found.setdefault(name, []).append(step)
        return found

    @property
    def vectors(self) -> bool:
        """True if the target is a CPU whose vectors fast kernels are written for."""
        isa = dot.choose(self.features)
        return isa is not None and not isa.by_thread

    def run(self, rules: Mapping[type[Step], Rule]) -> None:
        """Lower every step by its class's rule, and fill the frames of what it makes."""
        for step in self.program.steps:
            rules[type(step)](self, step)
            for name in (ref.name for ref in writes(step) if ref.name in self.frames):
                kernel = self.frames[name].border(self.shape(name), self.plan(name).zero_point)
                self.call(step.name, kernel, self.codes(name))

    def plan(self, name: str) -> ActivationPlan:
        """The grid of the codes of `name`."""
        return self.program.codes[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the codes of `name`."""
        return self.trace.codes[name]

    def raw(self, name: str) -> Array:
        """A raw value that does not depend on the input's content."""
        if name in self.trace.raw:
            return self.trace.raw[name]
        constant = self.program.constants[name]
        return constant if isinstance(constant, np.ndarray) else constant.numpy()

    def dtype(self, name: str) -> str:
        """Of the codes of `name`."""
        return str(np.dtype(self.plan(name).dtype))

    def view(self, name: str) -> View:
        """Where the codes of `name` are in their tensor."""
        if name in self.frames:
            return self.frames[name].inside(self.shape(name))
        return self.views.get(name) or view_of(self.shape(name), name in self._last)

    def codes(self, name: str) -> Operand:
        """The codes of `name` as an operand; constants go into the blob, in their layout."""
        if name in self.program.code_constants:
            flat = np.zeros(self.view(name).size, self.dtype(name))
            self.view(name).read(flat)[...] = self.program.code_constants[name]
            return self.constant(flat)
        framed = self.frames.get(name)
        size = np.prod(framed.outer(self.shape(name))) if framed else self.view(name).size
        self.sizes[name] = int(size) * np.dtype(self.dtype(name)).itemsize
        return Tensor(name)

    def scratch(self, name: str, size_bytes: int) -> Tensor:
        """Memory that lives for the calls that name it."""
        self.sizes[name] = size_bytes
        return Tensor(name)

    def constant(self, array: Array) -> Stored:
        """Put an array into the blob, once."""
        data = np.ascontiguousarray(array).tobytes()
        key = (array.dtype.str, data)
        if key not in self._stored:
            self.blob.extend(bytes(-len(self.blob) % ALIGNMENT))
            self._stored[key] = Stored(len(self.blob))
            self.blob.extend(data)
        return self._stored[key]

    def call(self, step: str, kernel: Kernel, *operands: Operand) -> None:
        """Append a call."""
        self.calls.append(Call(step, kernel, operands))
