"""Where the elements of tensors are in flat buffers. No TVM here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class View:
    """Where the elements of a tensor are in a flat buffer: offset + sum index * stride."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements that indices reach, from the buffer's start."""
        ends = ((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.offset + sum(ends) + 1 if all(self.shape) else 0

    def at(self, indices: Sequence[Any]) -> Any:
        """The flat index of an element."""
        terms = [i * s for i, s in zip(indices, self.strides, strict=True) if s]
        return sum(terms, self.offset)

    def read(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The tensor as a numpy view of a flat buffer."""
        bytes_ = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, bytes_)

    def part(self, box: Sequence[slice]) -> View:
        """The elements of a box; its slices have a start and a stop."""
        start = sum(s.start * stride for s, stride in zip(box, self.strides, strict=True))
        return View(tuple(s.stop - s.start for s in box), self.strides, self.offset + start)

    def split(self, shape: Sequence[int]) -> View:
        """The same elements with axes split into several, each from its outermost on."""
        strides, sizes = [], iter(shape)
        for size, stride in zip(self.shape, self.strides, strict=True):
            parts = [next(sizes)]
            while math.prod(parts) < size:
                parts.append(next(sizes))
            strides += [stride * math.prod(parts[i + 1 :]) for i in range(len(parts))]
        return View(tuple(shape), tuple(strides), self.offset)

    def broadcast(self, shape: Sequence[int]) -> View:
        """The same elements seen with a larger shape; repeated axes have stride 0."""
        missing = len(shape) - len(self.shape)
        strides = [0] * missing + [
            0 if mine == 1 and whole != 1 else stride
            for mine, whole, stride in zip(self.shape, shape[missing:], self.strides, strict=True)
        ]
        return View(tuple(shape), tuple(strides), self.offset)


def collapse(views: Sequence[View]) -> tuple[tuple[int, ...], tuple[View, ...]]:
    """The loops over views of one shape: outermost first, in the last view's order of memory.

    Axes of one element are dropped and neighbours that every view walks as one are merged.
    Returns the loops' extents and each view in terms of them.
    """
    shape = views[-1].shape
    axes = sorted(
        (axis for axis in range(len(shape)) if shape[axis] != 1),
        key=lambda axis: (-views[-1].strides[axis], axis),
    )
    extents: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for axis in axes:
        steps = [view.strides[axis] for view in views]
        mergeable = extents and all(
            kept[-1] == step * shape[axis] for kept, step in zip(strides, steps, strict=True)
        )
        if mergeable:
            extents[-1] *= shape[axis]
        else:
            extents.append(shape[axis])
        for kept, step in zip(strides, steps, strict=True):
            kept[-1:] = [step] if mergeable else [*kept[-1:], step]
    loops = tuple(extents)
    return loops, tuple(
        View(loops, tuple(kept), view.offset) for kept, view in zip(strides, views, strict=True)
    )


def addresses(view: View) -> npt.NDArray[np.int64]:
    """Where each element is, in row-major order of the elements."""
    grids = np.indices(view.shape).reshape(len(view.shape), math.prod(view.shape))
    strides = np.asarray(view.strides, np.int64).reshape(1, -1)
    return np.asarray(view.offset + (strides @ grids)[0], np.int64)


def split_shape(places: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """The shape of a map with each axis in two where one stride does not tell it, but two may."""
    shape: list[int] = []
    for axis, size in enumerate(places.shape):
        if size == 0:
            return places.shape
        line = places[tuple(slice(None) if a == axis else 0 for a in range(places.ndim))]
        shape += _halves(line)
    return tuple(shape)


def _halves(line: npt.NDArray[np.int64]) -> list[int]:
    """[n], or [outer, inner] if one stride does not tell the places and two do."""
    steps = np.diff(line)
    jumps = np.flatnonzero(steps != steps[:1])
    inner = int(jumps[0]) + 1 if len(jumps) else len(line)
    if inner == len(line) or len(line) % inner:
        return [len(line)]
    rows = line.reshape(-1, inner)
    bent = [np.diff(rows, axis=axis, n=2).any() for axis in range(2)]
    apart = (np.diff(rows, axis=0) != np.diff(rows, axis=0)[:, :1]).any()
    return [len(line)] if any(bent) or apart else list(rows.shape)


def strided(places: npt.NDArray[np.int64]) -> View | None:
    """places as offset + sum index * stride, or None."""
    if not places.ndim or (places < 0).any():
        return None if places.ndim else View((), (), int(places))
    origin = int(places[(0,) * places.ndim])
    strides = []
    for axis, size in enumerate(places.shape):
        second = [0] * places.ndim
        second[axis] = 1
        strides.append(int(places[tuple(second)]) - origin if size > 1 else 0)
    view = View(places.shape, tuple(strides), origin)
    told = addresses(view).reshape(places.shape)
    return view if min(strides, default=0) >= 0 and (told == places).all() else None


def smallest_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds every element that is set."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)
