"""The levels of every row of a weight, ready for millions of nearest-level look-ups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats, Grid, Integers

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """What `Grid.quantize` and `Grid.dequantize` compute, with the set-up done once.

    Codes are float64 here, because they are only arithmetic's half-way house.
    grid: of all rows. scale, zero_point: [rows] float64.
    values, middles: [rows, 2^bits] and [rows, 2^bits - 1] float64, the levels and the midpoints
        between them; None on uniform grids, where arithmetic is faster than a search.
    """

    grid: Grid
    scale: Array
    zero_point: Array
    values: Array | None = None
    middles: Array | None = None

    @staticmethod
    def of(grid: Grid, scale: Floats, zero_point: Integers) -> Levels:
        """Levels of rows with these scales and zero points: [rows], [rows]."""
        step = np.asarray(scale, np.float64)
        offset = np.asarray(zero_point, np.float64)
        if grid.uniform:
            return Levels(grid, step, offset)
        tables = grid.tables(np.asarray(zero_point)).astype(np.float64)
        middles = (tables[:, 1:] + tables[:, :-1]) / 2
        return Levels(grid, step, offset, tables * step[:, None], middles * step[:, None])

    def column(self, index: int) -> Levels:
        """The levels of one column: the same in all."""
        return self

    def nearest(self, w: Array) -> Array:
        """Codes of the nearest levels: w [rows] or [rows, n] -> the same shape."""
        scale, offset = self._along(w, self.scale), self._along(w, self.zero_point)
        if self.middles is not None:
            return self._search(w)
        if self.grid.half:
            codes = np.ceil(w / (2.0 * scale)) - 1.0 + offset
        else:
            codes = np.rint(w / scale) + offset
        return np.minimum(np.maximum(codes, 0.0), self.grid.size - 1.0)

    def decode(self, codes: Array) -> Array:
        """Values of the codes: [rows] or [rows, n] -> the same shape."""
        if self.values is not None:
            first = self.grid.size * np.arange(len(codes))
            index = codes.astype(np.intp) + (first if codes.ndim == 1 else first[:, None])
            return np.asarray(self.values.reshape(-1)[index])
        scale, offset = self._along(codes, self.scale), self._along(codes, self.zero_point)
        if self.grid.half:
            return (2.0 * (codes - offset) + 1.0) * scale
        return (codes - offset) * scale

    def _search(self, w: Array) -> Array:
        middles = self.middles
        if middles is None:
            raise ValueError("uniform levels are computed, not searched")
        if w.ndim == 1:
            return np.asarray((middles < w[:, None]).sum(axis=1), np.float64)
        found = [np.searchsorted(m, row) for m, row in zip(middles, w, strict=True)]
        return np.asarray(found, np.float64)

    @staticmethod
    def _along(w: Array, rows: Array) -> Array:
        return rows if w.ndim == 1 else rows[:, None]


@dataclass(frozen=True)
class BlockLevels:
    """Levels of rows whose columns fall into blocks with a scale and a zero point each.

    blocks: the levels of every block. block_of: [K], the block that each column is in.
    """

    blocks: tuple[Levels, ...]
    block_of: npt.NDArray[np.intp]

    def column(self, index: int) -> Levels:
        """The levels of one column."""
        return self.blocks[int(self.block_of[index])]

    def decode(self, codes: Array) -> Array:
        """Values of the codes: [rows, K] -> the same shape."""
        values = [self.column(k).decode(codes[:, k]) for k in range(codes.shape[1])]
        return np.stack(values, axis=1)


def levels_of(
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    order: npt.NDArray[np.intp],
) -> Levels | BlockLevels:
    """Levels of rows whose columns come in this order, [K].

    scale, zero_point: [rows], or [rows, blocks] where K / blocks neighbouring columns share them.
    """
    if scale.ndim == 1:
        return Levels.of(grid, scale, zero_point)
    size = len(order) // scale.shape[1]
    if size * scale.shape[1] != len(order):
        raise ValueError(f"{len(order)} columns do not fall into {scale.shape[1]} equal blocks")
    blocks = zip(scale.T, zero_point.T, strict=True)
    return BlockLevels(tuple(Levels.of(grid, s, z) for s, z in blocks), order // size)
