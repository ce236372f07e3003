"""Compile a program, link it with its constants into one shared library, and describe it inside."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq.errors import UsageError
from ptq.integer.program import Program
from ptq.kernels.view import View
from ptq.runtime import FORMAT_VERSION
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.linking import Code, Contents, c_compiler
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
    """

    target: str = "llvm:native"
    batch: int | None = None
    reuse: bool = True
    weights: str = "auto"
    tune: int = 0


@dataclass(frozen=True)
class Compiled:
    """A program compiled for one target, not yet linked.

    kernels: step -> name of its kernels' classes, in order. code_views: value -> its offset in the
    arena and its view from there. entry: description that the library holds.
    plain: step -> why it has plain loops, which are slow.
    """

    code: Code
    target: str
    weights: bytes
    entry: Mapping[str, Any]
    kernels: Mapping[str, tuple[str, ...]]
    code_views: Mapping[str, tuple[int, View]]
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

    return build(program, trace(program, options.batch), description, options)


def describe(
    program: Program, options: CompileOptions, traced: Trace, scratch_bytes: int,
    calls: Sequence[tuple[str, str]], identity: str, *, on_device: bool,
) -> dict[str, Any]:  # fmt: skip
    """What a library says of itself. calls: step and kernel, in order; shapes are of one call.

    identity: a hash of what it computes. on_device: its scratch memory is not the caller's, whose
    arena is for reading all tensors afterwards, where they are kept.
    """

    def ports(boundaries: Any) -> list[dict[str, Any]]:
        return [{"name": b.name, "shape": list(traced.codes[b.name])} for b in boundaries]

    return {
        "version": FORMAT_VERSION,
        "identity": identity,
        "target": options.target,
        "weights": options.weights,
        "inputs": ports(program.inputs),
        "outputs": ports(program.outputs),
        "scratch_bytes": scratch_bytes,
        "arena_bytes": 0 if on_device and options.reuse else scratch_bytes,
        "samples": traced.samples,
        "dynamic_batch": traced.dynamic,
        "calls": [{"step": step, "kernel": kernel} for step, kernel in calls],
    }
