"""Run a module that `ptq compile` wrote. Needs Python's standard library and nothing else.

    module = ptq.runtime.load("model.so")
    y = module(x)

The library has one C function (ptq/targets/tvm/native/ptq_module.h); this is its Python side.
An input is any dense array in this process's memory that has DLPack or is a buffer. An output is a
numpy array, or where numpy is not installed a memoryview of float32, with its shape: numpy.asarray
and torch.frombuffer take one without a copy.
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

from ptq.arrays import Dense, address_of, as_numpy, dense, floats, integers, room
from ptq.cpus import usable_cpus
from ptq.errors import CalibrationError, InvalidModelError, MissingDependencyError, PtqError

FORMAT_VERSION = 3
ALIGNMENT = 64
FAILURES: dict[int, type[PtqError]] = {
    1: MissingDependencyError,
    3: CalibrationError,
    4: MissingDependencyError,
}
"""What the C function returns: no GPU, an input that names a row too many, another processor."""
INCLUDE = Path(__file__).parent / "targets" / "tvm" / "native"
"""Where ptq_module.h is, for C and C++."""

Array = Any
"""Whatever `ptq.arrays.dense` reads; an output is what `as_numpy` gives."""


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
    arena: scratch memory, bytes, one after another for each thread; empty for a GPU.
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
    arena: memoryview
    library: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fixed_batch(self) -> int | None:
        """How many samples a call takes, or None if it takes any number."""
        return None if self.dynamic_batch else self.samples

    def __call__(self, *arrays: Array) -> Any:
        """The output, or a tuple of them, for the inputs in order.

        Dense arrays of the input's type are not copied, unless they are read-only.

        Raises:
            CalibrationError: the arrays do not fit the inputs.
        """
        if len(arrays) != len(self.inputs):
            raise CalibrationError(
                f"{self.path}: got {len(arrays)} arrays; wanted {len(self.inputs)}: "
                f"{', '.join(port.name for port in self.inputs)}"
            )
        feeds = {port.name: x for port, x in zip(self.inputs, arrays, strict=True)}
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

    def profile(self, feeds: Mapping[str, Array]) -> tuple[int, ...]:
        """Run, and return the nanoseconds of every kernel call, in the order of `calls`.

        Raises:
            CalibrationError: an input is missing or has another shape.
        """
        nanoseconds = integers(len(self.calls))
        self._run(feeds, address_of(nanoseconds))
        return tuple(nanoseconds)

    def _run(self, feeds: Mapping[str, Array], nanoseconds: int | None) -> dict[str, Array]:
        given = [self._input(port, feeds) for port in self.inputs]
        repeats = self._repeats(given)
        shapes = [(repeats * p.shape[0], *p.shape[1:]) if p.shape else () for p in self.outputs]
        made = [floats(shape) for shape in shapes]
        with self._lock:
            status = self.library.ptq_run(
                repeats, _pointers([array.address for array in given]),
                _pointers(list(map(address_of, made))), address_of(self.arena), self.threads,
                nanoseconds,
            )  # fmt: skip
        if status:
            raise self._failure(status)
        names = [port.name for port in self.outputs]
        return dict(zip(names, map(as_numpy, made), strict=True))

    def _failure(self, status: int) -> PtqError:
        """What the last run, in this thread, did not succeed for."""
        self.library.ptq_error.restype = ctypes.c_char_p
        reason = self.library.ptq_error().decode(errors="replace")
        return FAILURES.get(status, PtqError)(f"{self.path}: compiled for {self.target}: {reason}")

    def _input(self, port: Port, feeds: Mapping[str, Array]) -> Dense:
        """An input as the library reads it: any number as a float, integers as integers."""
        if port.name not in feeds:
            raise CalibrationError(f"{self.path}: input {port.name!r} is missing")
        given = feeds[port.name]
        found = dense(given)
        if found is not None and found.dtype == port.dtype:
            return found
        try:
            import numpy as np
        except ImportError:
            kind = type(given).__name__ if found is None else found.dtype
            raise CalibrationError(
                f"{self.path}: input {port.name} is {kind}; wanted a dense array of {port.dtype} "
                "in memory: give one, or install numpy, which converts others"
            ) from None
        foreign = not isinstance(given, np.ndarray) and hasattr(given, "__dlpack__")
        array = np.from_dlpack(given) if foreign else np.asarray(given)
        if port.dtype != "float32" and array.dtype.kind not in "iub":
            raise CalibrationError(
                f"{self.path}: input {port.name} is {array.dtype}; wanted {port.dtype}"
            )
        array = np.asarray(array, port.dtype, order="C")
        return Dense(array.ctypes.data, array.shape, port.dtype, array)

    def _repeats(self, given: Sequence[Dense]) -> int:
        """How often the network is run over the batch."""
        repeats = 1
        for port, shape in zip(self.inputs, (array.shape for array in given), strict=True):
            first = port.shape[0] if port.shape else 1
            whole = self.dynamic_batch and bool(shape) and shape[0] % first == 0
            repeats = shape[0] // first if whole else 1
            if not repeats or shape != (repeats * first, *port.shape[1:])[: len(port.shape)]:
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
        room(described["arena_bytes"] * threads, ALIGNMENT),
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


def _ports(records: Sequence[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(**{**record, "shape": tuple(record["shape"])}) for record in records)


def _pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    """As C wants them."""
    return (ctypes.c_void_p * len(addresses))(*addresses)
