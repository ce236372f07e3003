"""Compile a program, link it with its constants into one shared library, and describe it inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ptq.errors import MissingDependencyError, PtqError, UsageError
from ptq.integer.program import Program
from ptq.kernels.view import View
from ptq.runtime import FORMAT_VERSION
from ptq.targets.tvm.description import Description, require_tvm
from ptq.targets.tvm.support import require_support
from ptq.targets.tvm.trace import Trace, trace

NATIVE = Path(__file__).parent / "native"
SOURCES = ("module.c", "parallel.c")
"""What is linked into every module, so that it needs no library but libc."""
FLAGS = ("-O2", "-fPIC", "-pthread")


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

    executable: Any
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
            objects = _compile_native(Path(folder), compiler, self)
            from tvm.support import cc

            # Threads of its own would outlive an unloaded library.
            create = cc.cross_compiler(compiler, options=[*FLAGS, "-Wl,-z,nodelete"])
            self.executable.export_library(str(path), fcompile=create, addons=objects)


def compile_program(program: Program, options: CompileOptions | None = None) -> Compiled:
    """Compile `program` to kernels and an entry function.

    Raises:
        UnsupportedModelError: a step that has no kernel, named before anything is compiled.
        MissingDependencyError: TVM is not installed.
        UsageError: an unknown target, or tiles to be tried for another machine than this.
    """
    options = options or CompileOptions()
    description = Description.parse(options.target)
    require_support(program)
    require_tvm()
    description = description.resolved()
    if options.tune and description != Description.parse("llvm:native").resolved():
        raise UsageError(
            f"--tune {options.tune}: kernels are timed here, so it needs --target llvm:native; "
            f"got {description.text}"
        )
    from ptq.targets.tvm.build import build

    return build(program, trace(program, options.batch), description, options)


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


def _compile_native(folder: Path, compiler: str, compiled: Compiled) -> list[str]:
    """Object files of SOURCES, the constants and the description in them."""
    weights, text, ports = (folder / name for name in ("weights.bin", "described.json", "ports.h"))
    weights.write_bytes(compiled.weights or b"\0")
    text.write_bytes(msgspec.json.encode(compiled.entry))
    ports.write_text(ports_header(compiled.entry))
    files = [f'-DPTQ_WEIGHTS="{weights}"', f'-DPTQ_DESCRIPTION="{text}"', "-include", str(ports)]
    objects = []
    for source in SOURCES:
        made = str(folder / f"{source}.o")
        command = [
            compiler,
            "-std=c11",
            "-fvisibility=hidden",
            *FLAGS,
            *files,
            "-c",
            str(NATIVE / source),
            "-o",
            made,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PtqError(f"{compiler} failed on {source}: {done.stderr.strip()[:400]}")
        objects.append(made)
    return objects


def ports_header(entry: Mapping[str, Any]) -> str:
    """What module.c has to know of one network: its arrays, their elements, and its arena."""
    lines = [
        "#include <stdint.h>",
        f"#define PTQ_ARENA_BYTES {entry['arena_bytes']}",
        f"#define PTQ_CALLS {len(entry['calls'])}",
    ]
    arguments = []
    for group in ("inputs", "outputs"):
        sizes = [int(np.prod(port["shape"], dtype=np.int64)) for port in entry[group]]
        lines.append(f"#define PTQ_{group.upper()} {len(sizes)}")
        lines.append(
            "__attribute__((unused)) static const int64_t "
            f"{group[:-1]}_sizes[] = {{{', '.join(map(str, sizes))}}};"
        )
        arguments += [f"{group}[{number}]" for number in range(len(sizes))]
    kinds = ["const float *"] * len(entry["inputs"]) + ["float *"] * len(entry["outputs"])
    lines.append(f"int32_t ptq_entry({', '.join(kinds)}, void *arena);")
    lines.append(f"#define PTQ_PORTS {', '.join(arguments)}")
    return "\n".join(lines) + "\n"


def describe(
    program: Program, options: CompileOptions, traced: Trace, arena_bytes: int,
    calls: Sequence[tuple[str, str]], identity: str,
) -> dict[str, Any]:  # fmt: skip
    """What a library says of itself. calls: step and kernel, in order; shapes are of one call.

    identity: a hash of what it computes.
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
        "arena_bytes": arena_bytes,
        "samples": traced.samples,
        "dynamic_batch": traced.dynamic,
        "calls": [{"step": step, "kernel": kernel} for step, kernel in calls],
    }
