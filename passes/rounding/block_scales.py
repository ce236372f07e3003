"""Blocks of columns with a scale and a zero point each, as group-wise formats have them.

A block of a row is treated as a row of its own: [rows, K] becomes [blocks * rows, size], block
after block, which is the convention of groups in `layer_error`. K is a multiple of the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.passes.rounding.coordinate import coordinate_descent
from ptq.passes.rounding.flip import squant
from ptq.passes.rounding.layer_error import row_errors
from ptq.passes.rounding.range_search import search_scales

Array = npt.NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)

ROUNDS, SWEEPS = 3, 2
RIDGE = 1e-6  # of the mean curvature: two blocks may pull at the same direction
SHIFT = 0.5  # a refitted scale changes by at most this share


@dataclass(frozen=True)
class Blocked:
    """A weight in blocks: codes [rows, K] uint8; scale float64, zero_point int64 [rows, blocks]."""

    grid: Grid
    codes: Codes
    scale: Floats
    zero_point: Integers

    def integers(self) -> Array:
        """Codes without their zero points, [rows, K] float64."""
        size = self.codes.shape[1] // self.scale.shape[1]
        offset = np.repeat(self.zero_point, size, axis=1).astype(np.float64)
        return np.asarray(self.codes - offset, np.float64)

    def dequantize(self) -> Array:
        """Values, [rows, K] float64."""
        size = self.codes.shape[1] // self.scale.shape[1]
        return self.integers() * np.repeat(self.scale, size, axis=1)


def as_rows(w: Floats, size: int) -> Floats:
    """[rows, K] -> [blocks * rows, size]."""
    return w.reshape(len(w), -1, size).swapaxes(0, 1).reshape(-1, size)


def by_block(column: npt.NDArray[Number], rows: int) -> npt.NDArray[Number]:
    """The inverse for what each block has one of: [blocks * rows] -> [rows, blocks]."""
    return np.ascontiguousarray(column.reshape(-1, rows).T)


def block_grams(gram: Floats, size: int) -> Floats:
    """The blocks on the diagonal: [1, K, K] -> [blocks, size, size]."""
    starts = range(0, gram.shape[-1], size)
    return np.stack([gram[0, k : k + size, k : k + size] for k in starts])


def search_block_scales(
    w: Floats, grid: Grid, size: int, gram: Floats | None = None
) -> tuple[Floats, Integers]:
    """Scale and zero point of every block by `search_scales`: [rows, blocks] each.

    w: [rows, K]; gram: [1, K, K] weighs the error within each block.
    """
    own = None if gram is None else block_grams(gram, size)
    scale, zero_point = search_scales(as_rows(w, size), grid, own)
    return by_block(np.asarray(scale, np.float64), len(w)), by_block(zero_point, len(w))


def nearest_blocks(w: Floats, grid: Grid, scale: Floats, zero_point: Integers) -> Blocked:
    """Every weight at its nearest level. scale, zero_point: [rows, blocks]."""
    size = w.shape[1] // scale.shape[1]
    flat = scale.T.reshape(-1), zero_point.T.reshape(-1)
    codes = grid.quantize(as_rows(w, size), *flat)
    codes = codes.reshape(-1, len(w), size).swapaxes(0, 1).reshape(w.shape)
    return Blocked(grid, np.ascontiguousarray(codes), scale, zero_point)


def squant_blocks(w: Floats, grid: Grid, scale: Floats, zero_point: Integers) -> Blocked:
    """SQuant in every block: its errors cancel in their sum."""
    size = w.shape[1] // scale.shape[1]
    flat = scale.T.reshape(-1), zero_point.T.reshape(-1)
    codes = squant(as_rows(w, size)[:, :, None], grid, *flat)
    codes = codes.reshape(-1, len(w), size).swapaxes(0, 1).reshape(w.shape)
    return Blocked(grid, np.ascontiguousarray(codes), scale, zero_point)


def refit_block_scales(w: Floats, found: Blocked, gram: Floats) -> Floats:
    """The scales of a row that are best together for its codes: [rows, blocks].

        argmin_s (sum_b s_b t_b - w) H (sum_b s_b t_b - w)^T:   A s = c,
        A_bd = t_b H t_d^T,   c_b = t_b H w^T,   t_b the integers of block b, zero elsewhere

    A scale stays within SHIFT of what it was, and a row that does not gain keeps its scales.
    """
    rows, blocks = found.scale.shape
    size, h = w.shape[1] // blocks, gram[0]
    t = found.integers()
    parts = t.reshape(rows, blocks, size)
    curvature = np.empty((rows, blocks, blocks))
    for b in range(blocks):
        pulled = parts[:, b] @ h[b * size : (b + 1) * size]
        curvature[:, b] = (pulled * t).reshape(rows, blocks, size).sum(2)
    slope = (t * (w @ h)).reshape(rows, blocks, size).sum(2)
    diagonal = np.einsum("rbb->rb", curvature)
    ridge = RIDGE * diagonal.mean(1, keepdims=True) + np.finfo(float).tiny
    system = curvature + ridge[:, :, None] * np.eye(blocks)
    wanted = np.linalg.solve(system, (slope + ridge * found.scale)[..., None])[..., 0]
    low, high = (1 - SHIFT) * found.scale, (1 + SHIFT) * found.scale
    wanted = np.clip(np.where(diagonal > 0, wanted, found.scale), low, high)
    after = Blocked(found.grid, found.codes, wanted, found.zero_point)
    gains = row_errors(w, after.dequantize(), gram) < row_errors(w, found.dequantize(), gram)
    return np.where(gains[:, None], wanted, found.scale)


def refine_blocks(w: Floats, found: Blocked, gram: Floats) -> Blocked:
    """Coordinate descent on the codes and refitted scales in turn; the error never rises."""
    for _ in range(ROUNDS):
        scale = refit_block_scales(w, found, gram)
        codes = coordinate_descent(
            w, found.codes, gram, found.grid, scale, found.zero_point, SWEEPS
        )
        settled = np.array_equal(scale, found.scale) and np.array_equal(codes, found.codes)
        found = Blocked(found.grid, codes, scale, found.zero_point)
        if settled:
            break
    return found
