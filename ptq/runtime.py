"""Run a module that `ptq compile` wrote. Needs numpy, apache-tvm-ffi and libtvm_runtime.so only.

    module = ptq.runtime.load("model.so")
    y = module(x)

libtvm_runtime.so, whose threads run parallel loops, is looked for beside the module and then in
an installed apache-tvm, whose compiler is never loaded.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.errors import CalibrationError, InvalidModelError, MissingDependencyError

FORMAT_VERSION = 1
RUNTIME_LIBRARY = "libtvm_runtime.so"
ALIGNMENT = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Port:
    """An input or output, float32. shape: of one call."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A loaded module; calls from several threads wait for one another.

    samples: how many one call takes, or a multiple of them if `dynamic_batch`.
    arena: scratch memory, uint8.
    """

    path: Path
    target: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    samples: int
    dynamic_batch: bool
    arena: npt.NDArray[np.uint8]
    entry: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, *arrays: npt.ArrayLike) -> Any:
        """The output, or a tuple of them, for the inputs in order.

        Raises:
            CalibrationError: the arrays do not fit the inputs.
        """
        if len(arrays) != len(self.inputs):
            raise CalibrationError(
                f"{self.path}: got {len(arrays)} arrays; wanted {len(self.inputs)}: "
                f"{', '.join(port.name for port in self.inputs)}"
            )
        feeds = {port.name: np.asarray(x) for port, x in zip(self.inputs, arrays, strict=True)}
        found = tuple(self.run(feeds).values())
        return found[0] if len(found) == 1 else found

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name from inputs by name, float32.

        Raises:
            CalibrationError: an input is missing or has another shape.
        """
        import tvm_ffi

        calls = self._calls(feeds)
        given = [np.ascontiguousarray(feeds[port.name], np.float32) for port in self.inputs]
        made = [
            np.empty((calls * port.shape[0], *port.shape[1:]) if port.shape else (), np.float32)
            for port in self.outputs
        ]
        buffers: list[Array] = [*given, *made, self.arena]
        flat = [tvm_ffi.from_dlpack(array.reshape(-1)) for array in buffers]
        with self._lock:
            self.entry(calls, *flat)
        return {port.name: array for port, array in zip(self.outputs, made, strict=True)}

    def _calls(self, feeds: Mapping[str, Array]) -> int:
        """How often the entry function repeats itself over the batch."""
        calls = 1
        for port in self.inputs:
            if port.name not in feeds:
                raise CalibrationError(f"{self.path}: input {port.name!r} is missing")
            shape = tuple(np.shape(feeds[port.name]))
            first = port.shape[0] if port.shape else 1
            whole = self.dynamic_batch and bool(shape) and shape[0] % first == 0
            calls = shape[0] // first if whole else 1
            if shape != (calls * first, *port.shape[1:])[: len(port.shape)]:
                batch = "N" if self.dynamic_batch else str(first)
                wanted = ", ".join([batch, *map(str, port.shape[1:])])
                raise CalibrationError(
                    f"{self.path}: input {port.name} has shape {list(shape)}; wanted [{wanted}]"
                )
        return calls


def load(path: str | Path, *, threads: int | None = 1) -> Module:
    """Load a module that `ptq compile` wrote.

    threads: of this process's pool for parallel loops. TVM's pool waits for each of its threads in
        every loop, so on a busy machine more than one is slower by far. None leaves the pool alone.

    Raises:
        InvalidModelError: not such a file, or one of another version.
        MissingDependencyError: the runtime is not installed.
    """
    path = Path(path).resolve()
    tvm_ffi = _load_runtime(path.parent)
    described = _description(path)
    if threads is not None:
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, threads)
    return Module(
        path,
        described["target"],
        _ports(described["inputs"]),
        _ports(described["outputs"]),
        described["samples"],
        described["dynamic_batch"],
        _aligned(described["arena_bytes"]),
        tvm_ffi.load_module(str(path))["ptq_run"],
    )


def _description(path: Path) -> dict[str, Any]:
    """The JSON text inside the library."""
    try:
        library = ctypes.CDLL(str(path))
        first = ctypes.c_char.in_dll(library, "ptq_description")
        described = json.loads(ctypes.string_at(ctypes.addressof(first)))
    except (OSError, ValueError) as error:
        raise InvalidModelError(
            f"{path}: not a module of this machine that `ptq compile` wrote ({error})"
        ) from error
    if described["version"] != FORMAT_VERSION:
        raise InvalidModelError(
            f"{path}: version {described['version']}; this ptq runs {FORMAT_VERSION}: compile again"
        )
    return dict(described)


def _load_runtime(folder: Path) -> Any:
    """Import tvm_ffi and load the library that has the thread pool."""
    if find_spec("tvm_ffi") is None:
        raise MissingDependencyError(
            "running a TVM module needs apache-tvm-ffi: pip install 'ptq-compiler[tvm]'"
        )
    import tvm_ffi

    candidates = [folder / RUNTIME_LIBRARY]
    package = find_spec("tvm")
    if package is not None and package.origin is not None:
        candidates.append(Path(package.origin).parent / "lib" / RUNTIME_LIBRARY)
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise MissingDependencyError(
            f"running a TVM module needs {RUNTIME_LIBRARY}: put it beside the module, or "
            "pip install 'ptq-compiler[tvm]'"
        )
    ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _ports(records: Sequence[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(record["name"], tuple(record["shape"])) for record in records)


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """size bytes of zeros whose address suits vector loads."""
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
