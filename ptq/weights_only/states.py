"""Activations of all samples where the network has been computed to, batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy.typing as npt

from ptq.scratch import Scratch

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]


class States(Scratch):
    """Named arrays of every batch.

    Batches keep their composition, so that values without a batch axis (masks, positions) have
    their place too.
    """

    def __init__(self, batches: Iterable[Batch], memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self._held: list[dict[str, Array]] = []
        for index, batch in enumerate(batches):
            self._held.append({})
            self.put(index, batch)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Batch:
        return self._held[index]

    def put(self, index: int, values: Batch) -> None:
        """Add or replace values of one batch."""
        held = self._held[index]
        for name, x in values.items():
            if name in held:
                self.free(held.pop(name))
            held[name] = self.empty(x.shape, x.dtype)
            held[name][...] = x

    def keep(self, index: int, names: Collection[str]) -> None:
        """Let go of all other values of one batch."""
        held = self._held[index]
        for name in held.keys() - set(names):
            self.free(held.pop(name))
