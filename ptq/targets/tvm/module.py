"""Compile a program, link it with its constants into one shared library, and describe it inside."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import UsageError
from ptq.integer.program import Program
from ptq.kernels.view import View
from ptq.runtime import FORMAT_VERSION
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.linking import Code, Contents, c_compiler
from ptq.targets.tvm.ports import Port
from ptq.targets.tvm.support import require_support
from ptq.targets.tvm.trace import Trace, trace


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    target: what `Description.parse` reads. batch: samples a call, or None for any number.
    reuse: let tensors share memory; without it all of them can be read after a call.
    weights: 'int8', 'packed' (codes of 2 to 4 bits and a table a channel, where a channel has so
    few values), or 'auto': packed where that is faster, in large products of one row.
    tune: how many tiles to try for each shape, on this machine.
    sizes: of symbolic axes behind the first, by their names.
    """

    target: str = "llvm:native"
    batch: int | None = None
    reuse: bool = True
    weights: str = "auto"
    tune: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CodeView:
    """Where codes are in the arena: bytes from its start, their type, the view from there.

    axis: where the samples of a batch lie; None if they have the tensor in common.
    """

    offset: int
    dtype: str
    view: View
    axis: int | None = 0

    def read(self, arena: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """A copy of the codes."""
        end = self.offset + self.view.size * np.dtype(self.dtype).itemsize
        return np.array(self.view.read(arena[self.offset : end].view(self.dtype)))


@dataclass(frozen=True)
class Compiled:
    """A program compiled for one target, not yet linked.

    kernels: step -> name of its kernels' classes, in order. code_views: value -> where its codes
    are. entry: description that the library holds.
    plain: step -> why it has plain loops, which are slow.
    """

    code: Code
    target: str
    weights: bytes
    entry: Mapping[str, Any]
    kernels: Mapping[str, tuple[str, ...]]
    code_views: Mapping[str, CodeView]
    plain: Mapping[str, str]

    def export(self, path: Path) -> None:
        """Link one shared library that needs no other file.

        Raises:
            MissingDependencyError: there is no C compiler for the target.
        """
        compiler = c_compiler(Description.parse(self.target))
        with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
            contents = Contents(self.weights, self.entry)
            self.code.link(path, compiler, Path(folder), contents)


def compile_program(program: Program, options: CompileOptions | None = None) -> Compiled:
    """Compile `program` to kernels and an entry function.

    Raises:
        UnsupportedModelError: a step that has no kernel, named before anything is compiled.
        MissingDependencyError: TVM, or what compiles its code for a GPU, is not installed.
        UsageError: an unknown target, or tiles to be tried for another machine than this.
    """
    options = options or CompileOptions()
    description = Description.parse(options.target)
    require_support(program)
    description = description.resolved()
    if options.tune and description != Description.parse("llvm:native").resolved():
        raise UsageError(
            f"--tune {options.tune}: kernels are timed here, so it needs --target llvm:native; "
            f"got {description.text}"
        )
    from ptq.targets.tvm.build import build

    return build(program, trace(program, options.batch, options.sizes), description, options)


def describe(
    ports: tuple[Sequence[Port], Sequence[Port]], options: CompileOptions, traced: Trace,
    scratch_bytes: int, calls: Sequence[tuple[str, str]], identity: str, *, on_device: bool,
) -> dict[str, Any]:  # fmt: skip
    """What a library says of itself. ports: in and out. calls: step and kernel, in order.

    identity: a hash of what it computes. on_device: its scratch memory is not the caller's, whose
    arena is for reading all tensors afterwards, where they are kept.
    """
    return {
        "version": FORMAT_VERSION,
        "identity": identity,
        "target": options.target,
        "weights": options.weights,
        "sizes": dict(options.sizes),
        "inputs": [asdict(port) for port in ports[0]],
        "outputs": [asdict(port) for port in ports[1]],
        "scratch_bytes": scratch_bytes,
        "arena_bytes": 0 if on_device and options.reuse else scratch_bytes,
        "samples": traced.samples,
        "dynamic_batch": traced.dynamic,
        "calls": [{"step": step, "kernel": kernel} for step, kernel in calls],
    }
