"""Compile the native sources beside constants and description, and find the compiler for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ptq.errors import MissingDependencyError, PtqError
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.ports import Port, ports_header

NATIVE = Path(__file__).parent / "native"
FLAGS = ("-O2", "-fPIC", "-pthread")
LINK_FLAGS = (*FLAGS, "-Wl,-z,nodelete")
"""Threads of its own, or a device's memory, would outlive an unloaded library."""


@dataclass(frozen=True)
class Contents:
    """What a library holds besides code: constants, and the description that it gives of itself."""

    weights: bytes
    entry: Mapping[str, Any]


class Code(Protocol):
    """Compiled kernels of one kind of machine, not linked yet."""

    def link(self, path: Path, compiler: str, folder: Path, contents: Contents) -> None:
        """Write one shared library that needs no other file; `folder` is for what is between."""
        ...


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


def native_objects(
    folder: Path,
    compiler: str,
    contents: Contents,
    sources: Sequence[str],
    header: str = "",
    macros: Mapping[str, Path] | None = None,
) -> list[str]:
    """Object files of native sources. header: C text after the ports'. macros: paths by name.

    Raises:
        PtqError: the compiler fails.
    """
    weights, text, ports = (folder / name for name in ("weights.bin", "described.json", "ports.h"))
    weights.write_bytes(contents.weights or b"\0")
    text.write_bytes(msgspec.json.encode(contents.entry))
    ports.write_text(_header(contents.entry) + header)
    paths = {"PTQ_WEIGHTS": weights, "PTQ_DESCRIPTION": text, **(macros or {})}
    files = [f'-D{name}="{path}"' for name, path in paths.items()]
    common = [
        compiler,
        "-std=c11",
        "-D_GNU_SOURCE",
        "-fvisibility=hidden",
        *FLAGS,
        *files,
        "-include",
        str(ports),
    ]
    objects = []
    for source in sources:
        objects.append(str(folder / f"{source}.o"))
        run([*common, "-c", str(NATIVE / source), "-o", objects[-1]], f"compile {source}")
    return objects


def run(command: Sequence[str], purpose: str, cwd: Path | None = None) -> None:
    """Run a compiler.

    Raises:
        PtqError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise PtqError(f"{command[0]} could not {purpose}: {done.stderr.strip()[:400]}")


def _header(entry: Mapping[str, Any]) -> str:
    inputs, outputs = ([Port(**port) for port in entry[end]] for end in ("inputs", "outputs"))
    return ports_header(inputs, outputs, entry["arena_bytes"], len(entry["calls"]))
