"""Activations of all samples where the network has been computed to, batch by batch."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]


class States:
    """Named arrays of every batch: in memory up to `memory_bytes`, in temporary files beyond.

    Batches keep their composition, so that values without a batch axis (masks, positions) have
    their place too.
    """

    def __init__(self, batches: Iterable[Batch], memory_bytes: int) -> None:
        self._left = memory_bytes
        self._held: list[dict[str, Array]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made = 0
        for index, batch in enumerate(batches):
            self._held.append({})
            self.put(index, batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Batch:
        return self._held[index]

    def put(self, index: int, values: Batch) -> None:
        """Add or replace values of one batch."""
        for name, x in values.items():
            self._drop(index, name)
            self._held[index][name] = self._stored(x)

    def keep(self, index: int, names: Collection[str]) -> None:
        """Let go of all other values of one batch."""
        for name in self._held[index].keys() - set(names):
            self._drop(index, name)

    def _stored(self, x: Array) -> Array:
        if x.nbytes <= self._left:
            self._left -= x.nbytes
            return x
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptq-states-")
        self._made += 1
        path = Path(self._folder.name) / f"{self._made}.npy"
        np.save(path, x, allow_pickle=False)
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def _drop(self, index: int, name: str) -> None:
        x = self._held[index].pop(name, None)
        if isinstance(x, np.memmap):
            Path(str(x.filename)).unlink()
        elif x is not None:
            self._left += x.nbytes
