"""A module that `ptq compile` wrote as a session like onnxruntime's: both are timed alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq.report.session import Array, Session, open_session
from ptq.runtime import Module, Port, load

SUFFIX = ".so"


@dataclass(frozen=True)
class _Handle:
    """What `Session` asks of an onnxruntime.InferenceSession."""

    module: Module

    def get_inputs(self) -> tuple[Port, ...]:
        """Inputs, with their names."""
        return self.module.inputs

    def get_outputs(self) -> tuple[Port, ...]:
        """Outputs, with their names."""
        return self.module.outputs

    def run(self, names: None, feeds: Mapping[str, Array]) -> list[Any]:
        """All outputs in order."""
        return list(self.module.run(feeds).values())


def is_compiled(path: Path) -> bool:
    """True for a shared library rather than an ONNX file."""
    return path.suffix == SUFFIX


def open_compiled(path: Path, *, name: str, threads: int | None = None) -> Session:
    """Open a compiled module. Its thread pool is the process's: the last one opened sets its size.

    Raises:
        InvalidModelError: not such a file. MissingDependencyError: TVM's runtime is not installed.
    """
    return session_of(load(path, threads=threads), name)


def open_file(path: Path, *, name: str, threads: int | None = None) -> Session:
    """Open an ONNX file or a compiled module.

    Raises:
        ModelError: it cannot be opened.
    """
    opened = open_compiled if is_compiled(path) else open_session
    return opened(path, name=name, threads=threads)


def session_of(module: Module, name: str) -> Session:
    """A module that is loaded already."""
    return Session(name, _Handle(module), {})
