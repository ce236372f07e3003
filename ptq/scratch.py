"""Room for arrays: in memory up to a budget, in temporary files beyond."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Scratch:
    """Makes arrays. Those that would exceed `memory_bytes` together are mapped from files.

    Files go with what they hold (`free`), and all of them when the scratch is closed.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._left = memory_bytes
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
        if self._folder is not None:
            self._folder.cleanup()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array whose values are not set."""
        wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if wanted <= self._left or not wanted:  # nothing cannot be mapped
            self._left -= wanted
            return np.empty(shape, dtype)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ptq-")
        self._made += 1
        path = Path(self._folder.name) / f"{self._made}.bin"
        return np.memmap(path, dtype, "w+", shape=shape)

    def free(self, array: Array) -> None:
        """Give back the room of an array that was made here and is not used any more."""
        if isinstance(array, np.memmap):
            Path(str(array.filename)).unlink()
        else:
            self._left += array.nbytes
