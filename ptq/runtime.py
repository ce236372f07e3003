"""Run a module that `ptq compile` wrote. Needs numpy and nothing else.

    module = ptq.runtime.load("model.so")
    y = module(x)

The library has one C function (ptq/targets/tvm/native/ptq_module.h); this is its Python side.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.cpus import usable_cpus
from ptq.errors import CalibrationError, InvalidModelError, MissingDependencyError, PtqError

FORMAT_VERSION = 3
ALIGNMENT = 64
FAILURES: dict[int, type[PtqError]] = {1: MissingDependencyError, 3: CalibrationError}
"""What the C function returns where there is no GPU, and where an input names a row too many."""
INCLUDE = Path(__file__).parent / "targets" / "tvm" / "native"
"""Where ptq_module.h is, for C and C++."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Port:
    """An input or output. shape: of one call.

    rows: how many rows its values choose from, -rows .. rows - 1; 0 if they do not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    rows: int = 0


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel, for a step of the integer program."""

    step: str
    kernel: str


@dataclass(frozen=True)
class Module:
    """A loaded module; calls from several threads wait for one another.

    weights: how they are stored, as `ptq compile --weights` says. sizes: of named axes.
    samples: how many one call takes, or a multiple of them if `dynamic_batch`.
    calls: the kernels in order. threads: how many work at most.
    arena: scratch memory, uint8, one after another for each thread; empty for a GPU.
    library: the C functions.
    """

    path: Path
    target: str
    weights: str
    sizes: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    samples: int
    dynamic_batch: bool
    calls: tuple[KernelCall, ...]
    threads: int
    arena: npt.NDArray[np.uint8]
    library: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, *arrays: Any) -> Any:
        """The output, or a tuple of them, for the inputs in order; what has DLPack is not copied.

        Raises:
            CalibrationError: the arrays do not fit the inputs.
        """
        if len(arrays) != len(self.inputs):
            raise CalibrationError(
                f"{self.path}: got {len(arrays)} arrays; wanted {len(self.inputs)}: "
                f"{', '.join(port.name for port in self.inputs)}"
            )
        feeds = {port.name: _as_numpy(x) for port, x in zip(self.inputs, arrays, strict=True)}
        found = tuple(self.run(feeds).values())
        return found[0] if len(found) == 1 else found

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, float32, from inputs by name.

        Raises:
            CalibrationError: an input is missing, has another shape or type, or chooses a row that
                does not exist.
            MissingDependencyError: the module is for a GPU, and there is none.
        """
        return self._run(feeds, None)

    def profile(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.int64]:
        """Run, and return the nanoseconds of every kernel call, in the order of `calls`.

        Raises:
            CalibrationError: an input is missing or has another shape.
        """
        nanoseconds = np.zeros(len(self.calls), np.int64)
        self._run(feeds, nanoseconds)
        return nanoseconds

    def _run(self, feeds: Mapping[str, Array], nanoseconds: Array | None) -> dict[str, Array]:
        repeats = self._repeats(feeds)
        given = [self._array(port, feeds[port.name]) for port in self.inputs]
        made = [
            np.empty((repeats * port.shape[0], *port.shape[1:]) if port.shape else (), np.float32)
            for port in self.outputs
        ]
        times = None if nanoseconds is None else nanoseconds.ctypes.data
        with self._lock:
            status = self.library.ptq_run(
                repeats, _pointers(given), _pointers(made), self.arena.ctypes.data, self.threads,
                times,
            )  # fmt: skip
        if status:
            raise self._failure(status)
        return {port.name: array for port, array in zip(self.outputs, made, strict=True)}

    def _failure(self, status: int) -> PtqError:
        """What the last run, in this thread, did not succeed for."""
        self.library.ptq_error.restype = ctypes.c_char_p
        reason = self.library.ptq_error().decode(errors="replace")
        return FAILURES.get(status, PtqError)(f"{self.path}: compiled for {self.target}: {reason}")

    def _array(self, port: Port, given: Any) -> Array:
        """An input as the library reads it: any number as a float, integers as integers."""
        array = np.asarray(given)
        if port.dtype != "float32" and array.dtype.kind not in "iub":
            raise CalibrationError(
                f"{self.path}: input {port.name} is {array.dtype}; wanted {port.dtype}"
            )
        return np.ascontiguousarray(array, port.dtype)

    def _repeats(self, feeds: Mapping[str, Array]) -> int:
        """How often the network is run over the batch."""
        repeats = 1
        for port in self.inputs:
            if port.name not in feeds:
                raise CalibrationError(f"{self.path}: input {port.name!r} is missing")
            shape = tuple(np.shape(feeds[port.name]))
            first = port.shape[0] if port.shape else 1
            whole = self.dynamic_batch and bool(shape) and shape[0] % first == 0
            repeats = shape[0] // first if whole else 1
            if shape != (repeats * first, *port.shape[1:])[: len(port.shape)]:
                batch = "N" if self.dynamic_batch else str(first)
                wanted = ", ".join([batch, *map(str, port.shape[1:])])
                raise CalibrationError(
                    f"{self.path}: input {port.name} has shape {list(shape)}; wanted [{wanted}]"
                )
        return repeats


def load(path: str | Path, *, threads: int | None = 1) -> Module:
    """Load a module that `ptq compile` wrote.

    threads: how many work at most; None is one for every CPU. A busy machine makes more than one
        useless, but hardly slower: helpers that the system does not schedule are not waited for.

    Raises:
        InvalidModelError: not such a file, or one of another version, or its path was loaded with
            other contents before: the system gives a process the old library again.
    """
    path = Path(path).resolve()
    library, described = _open(path)
    library.ptq_run.argtypes = [
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32,
        ctypes.c_void_p,
    ]  # fmt: skip
    threads = threads or len(usable_cpus())
    return Module(
        path,
        described["target"],
        described["weights"],
        described["sizes"],
        _ports(described["inputs"]),
        _ports(described["outputs"]),
        described["samples"],
        described["dynamic_batch"],
        tuple(KernelCall(call["step"], call["kernel"]) for call in described["calls"]),
        threads,
        _aligned(described["arena_bytes"] * threads),
        library,
    )


def _open(path: Path) -> tuple[ctypes.CDLL, dict[str, Any]]:
    """The library and the JSON text inside it."""
    try:
        library = ctypes.CDLL(str(path))
        first = ctypes.c_char.in_dll(library, "ptq_description")
        text = ctypes.string_at(ctypes.addressof(first))
        described = json.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidModelError(
            f"{path}: not a module of this machine that `ptq compile` wrote ({error})"
        ) from error
    if described["version"] != FORMAT_VERSION:
        raise InvalidModelError(
            f"{path}: version {described['version']}; this ptq runs {FORMAT_VERSION}: compile again"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        if contents.find(text) < 0:
            raise InvalidModelError(
                f"{path}: this process has loaded an older file of this name, which stays: "
                "give the new one another name, or load it in a new process"
            )
    return library, dict(described)


def _as_numpy(x: Any) -> Array:
    foreign = not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__")
    return np.from_dlpack(x) if foreign else np.asarray(x)


def _ports(records: Sequence[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(**{**record, "shape": tuple(record["shape"])}) for record in records)


def _pointers(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    """Their addresses, as C wants them."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """size bytes of zeros whose address suits vector loads."""
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
