"""Tensors of all samples: in memory up to a budget, in a temporary file beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]

PART = 32
"""Samples that are run at a time."""
THREADS = 2


class SampleStore:
    """Named arrays [samples, ...], filled batch after batch and read by index.

    Arrays that would exceed `memory_bytes` together are memory-mapped from a temporary folder,
    which goes when the store is closed or a tensor is dropped.
    """

    def __init__(self, samples: int, memory_bytes: int) -> None:
        self.samples = samples
        self.memory_bytes = memory_bytes
        self._arrays: dict[str, Array] = {}
        self._files: dict[str, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def write(self, start: int, values: Mapping[str, Array]) -> None:
        """Put the rows start .. start + n - 1 of some tensors."""
        for name, rows in values.items():
            if name not in self._arrays:
                self._arrays[name] = self._make(name, rows)
            self._arrays[name][start : start + len(rows)] = rows

    def take(self, names: Iterable[str], index: Index | slice) -> dict[str, Array]:
        """The rows at `index` of these tensors."""
        return {name: np.ascontiguousarray(self._arrays[name][index]) for name in names}

    def keep(self, names: set[str]) -> None:
        """Let go of everything else."""
        for name in self._arrays.keys() - names:
            del self._arrays[name]
            if name in self._files:
                self._files.pop(name).unlink()

    def close(self) -> None:
        """Let go of all of it."""
        self.keep(set())
        if self._folder is not None:
            self._folder.cleanup()

    def _make(self, name: str, rows: Array) -> Array:
        shape = (self.samples, *rows.shape[1:])
        held = sum(a.nbytes for n, a in self._arrays.items() if n not in self._files)
        wanted = rows[:1].nbytes * self.samples
        if held + wanted <= self.memory_bytes:
            return np.empty(shape, rows.dtype)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptq-samples-")
        self._made += 1
        self._files[name] = Path(self._folder.name) / f"{self._made}.bin"
        return np.memmap(self._files[name], rows.dtype, "w+", shape=shape)


def chunks(index: Index, size: int) -> Iterator[Index]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(index), size):
        yield index[start : start + size]


def run_parts(
    run: Callable[[Index], dict[str, Array]], index: Index
) -> Iterator[tuple[Index, dict[str, Array]]]:
    """Consecutive parts of the samples, and what `run` makes of each, in order.

    Parts run in threads of their own, as many at a time as there are; each is computed as if alone.
    """
    parts = list(chunks(index, PART))
    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for start in range(0, len(parts), THREADS):
            some = parts[start : start + THREADS]
            yield from zip(some, pool.map(run, some), strict=True)
