"""Tensors of all samples: in memory up to a budget, in a temporary file beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ptq.passes.learning.sample_axes import Axes
from ptq.scratch import Scratch

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]

PART = 32
"""Samples that are run at a time."""
THREADS = 2


@dataclass(frozen=True)
class Layout:
    """Which samples lie together: those whose tensors have the same shapes.

    group: [samples], the number of a sample's group. row: [samples], its place in the group.
    axes: where a tensor's samples lie; the first axis of those that are not named.
    """

    group: Index
    row: Index
    axes: Axes = field(default_factory=dict)

    @staticmethod
    def of(batches: Iterable[Mapping[str, Array]], axes: Axes) -> Layout:
        """By the shapes of what the model is given; a batch has samples of one group."""
        numbers, sizes = dict[object, int](), Counter[int]()
        groups, rows = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
        for batch in batches:
            count = len(next(iter(batch.values())))
            key = tuple((name, x.shape[1:]) for name, x in batch.items())
            number = numbers.setdefault(key, len(numbers))
            groups.append(np.full(count, number))
            rows.append(np.arange(count) + sizes[number])
            sizes[number] += count
        return Layout(np.concatenate(groups), np.concatenate(rows), axes)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.group)

    def size(self, group: int) -> int:
        """How many samples a group has."""
        return int((self.group == group).sum())

    def all_parts(self) -> Iterator[Index]:
        """All samples, as many at a time as are run at a time."""
        return self.parts(np.arange(self.samples), PART)

    def parts(self, index: Index, most: int) -> Iterator[Index]:
        """`index` in parts of one group and at most so many samples each."""
        for number in np.unique(self.group[index]):
            some = index[self.group[index] == number]
            for start in range(0, len(some), most):
                yield some[start : start + most]


class SampleStore(Scratch):
    """Named tensors of all samples, an array [samples, ...] a group; written and read by index.

    What is written or read at a time is of one group.
    """

    def __init__(self, layout: Layout, memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self.layout = layout
        self._arrays: dict[str, dict[int, Array]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of a tensor that is there."""
        return next(iter(self._arrays[name].values())).dtype

    def write(self, index: Index, values: Mapping[str, Array]) -> None:
        """Put the tensors of some samples."""
        group, places = self._find(index)
        for name, x in values.items():
            axis, arrays = self.layout.axes.get(name, 0), self._arrays.setdefault(name, {})
            rows = x[None] if axis is None else np.moveaxis(x, axis, 0)
            if group not in arrays:
                count = 1 if axis is None else self.layout.size(group)
                arrays[group] = self.empty((count, *rows.shape[1:]), rows.dtype)
            arrays[group][places if axis is not None else slice(None)] = rows

    def take(self, names: Iterable[str], index: Index) -> dict[str, Array]:
        """These tensors, of the samples at `index`."""
        group, places = self._find(index)

        def taken(name: str) -> Array:
            axis, rows = self.layout.axes.get(name, 0), self._arrays[name][group]
            return rows[0] if axis is None else np.moveaxis(rows[places], 0, axis)

        return {name: np.ascontiguousarray(taken(name)) for name in names}

    def keep(self, names: set[str]) -> None:
        """Let go of everything else."""
        for name in self._arrays.keys() - names:
            for array in self._arrays.pop(name).values():
                self.free(array)

    def _find(self, index: Index) -> tuple[int, Index]:
        return int(self.layout.group[index[0]]), self.layout.row[index]


def run_parts(
    run: Callable[[Index], dict[str, Array]], parts: Iterable[Index]
) -> Iterator[tuple[Index, dict[str, Array]]]:
    """Parts of the samples, and what `run` makes of each, in order.

    Parts run in threads of their own, as many at a time as there are; each is computed as if alone.
    """
    waiting = iter(parts)
    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while some := list(islice(waiting, THREADS)):
            yield from zip(some, pool.map(run, some), strict=True)
