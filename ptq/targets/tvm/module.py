"""Compile a program, link it with its constants into one shared library, and describe it inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptq.errors import MissingDependencyError, PtqError
from ptq.integer.program import Program
from ptq.kernels.view import View
from ptq.runtime import FORMAT_VERSION
from ptq.targets.tvm.description import Description, require_tvm
from ptq.targets.tvm.support import require_support
from ptq.targets.tvm.trace import trace

GLUE = """
__asm__(".section .rodata\\n"
        ".balign 64\\n"
        "ptq_weights_data: .incbin \\"{weights}\\"\\n"
        ".global ptq_description\\n"
        "ptq_description: .incbin \\"{description}\\"\\n"
        ".byte 0\\n"
        ".previous\\n");
extern const char ptq_weights_data[] __attribute__((visibility("hidden")));
__attribute__((visibility("hidden"))) void* ptq_weights(void) {{ return (void*)ptq_weights_data; }}
"""
"""Constants enter as a file, so that neither LLVM nor the C compiler has to read megabytes."""


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    target: what `Description.parse` reads. batch: samples a call, or None for any number.
    reuse: let tensors share memory; without it all of them can be read after a call.
    """

    target: str = "llvm:native"
    batch: int | None = None
    reuse: bool = True


@dataclass(frozen=True)
class Compiled:
    """A program compiled for one target, not yet linked.

    kernels: step -> name of its kernels' classes, in order. code_views: value -> its offset in the
    arena and its view from there. entry: description that the library holds.
    """

    executable: Any
    target: str
    weights: bytes
    entry: Mapping[str, Any]
    kernels: Mapping[str, tuple[str, ...]]
    code_views: Mapping[str, tuple[int, View]]

    def export(self, path: Path) -> None:
        """Link one shared library that needs no other file.

        Raises:
            MissingDependencyError: there is no C compiler for the target.
        """
        compiler = c_compiler(Description.parse(self.target))
        with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
            glue = _compile_glue(Path(folder), compiler, self)
            from tvm.support import cc

            create = cc.cross_compiler(compiler, options=["-O2"])
            self.executable.export_library(str(path), fcompile=create, addons=[str(glue)])


def compile_program(program: Program, options: CompileOptions | None = None) -> Compiled:
    """Compile `program` to kernels and an entry function.

    Raises:
        UnsupportedModelError: a step that has no kernel, named before anything is compiled.
        MissingDependencyError: TVM is not installed.
        UsageError: an unknown target.
    """
    options = options or CompileOptions()
    description = Description.parse(options.target)
    require_support(program)
    require_tvm()
    from ptq.targets.tvm.build import build

    return build(program, trace(program, options.batch), description.resolved(), options.reuse)


def c_compiler(description: Description) -> str:
    """The C compiler that links for this machine or another one.

    Raises:
        MissingDependencyError: it is not installed.
    """
    machine = description.triple.split("-")[0]
    cross = machine and machine != os.uname().machine
    name = f"{machine}-linux-gnu-gcc" if cross else os.environ.get("CC", "gcc")
    found = shutil.which(name)
    if found is None:
        raise MissingDependencyError(
            f"linking for {description.text} needs {name}: install it, or set CC"
        )
    return found


def _compile_glue(folder: Path, compiler: str, compiled: Compiled) -> Path:
    weights, text = folder / "weights.bin", folder / "description.json"
    weights.write_bytes(compiled.weights or b"\0")
    text.write_bytes(msgspec.json.encode(compiled.entry))
    source, glue = folder / "glue.c", folder / "glue.o"
    source.write_text(GLUE.format(weights=weights, description=text))
    command = [compiler, "-O2", "-fPIC", "-c", str(source), "-o", str(glue)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PtqError(f"{compiler} failed on the constants: {done.stderr.strip()[:400]}")
    return glue


def describe(
    program: Program, description: Description, arena_bytes: int, samples: int, dynamic: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:  # fmt: skip
    """What a library says of itself; shapes are those of one call."""

    def ports(boundaries: Any) -> list[dict[str, Any]]:
        return [{"name": b.name, "shape": list(shapes[b.name])} for b in boundaries]

    return {
        "version": FORMAT_VERSION,
        "target": description.text,
        "inputs": ports(program.inputs),
        "outputs": ports(program.outputs),
        "arena_bytes": arena_bytes,
        "samples": samples,
        "dynamic_batch": dynamic,
    }
