"""Tensors of all samples: in memory up to a budget, in a temporary file beyond it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ptq.scratch import Scratch

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]

PART = 32
"""Samples that are run at a time."""
THREADS = 2


class SampleStore(Scratch):
    """Named arrays [samples, ...], filled batch after batch and read by index."""

    def __init__(self, samples: int, memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self.samples = samples
        self._arrays: dict[str, Array] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def write(self, start: int, values: Mapping[str, Array]) -> None:
        """Put the rows start .. start + n - 1 of some tensors."""
        for name, rows in values.items():
            if name not in self._arrays:
                self._arrays[name] = self.empty((self.samples, *rows.shape[1:]), rows.dtype)
            self._arrays[name][start : start + len(rows)] = rows

    def take(self, names: Iterable[str], index: Index | slice) -> dict[str, Array]:
        """The rows at `index` of these tensors."""
        return {name: np.ascontiguousarray(self._arrays[name][index]) for name in names}

    def keep(self, names: set[str]) -> None:
        """Let go of everything else."""
        for name in self._arrays.keys() - names:
            self.free(self._arrays.pop(name))


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
