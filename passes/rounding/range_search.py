"""Search every row's scale and zero point, among those that the integer program can run.

The error of nearest rounding, sum_k h_k (w^_k - w_k)^2, is minimised over clip factors and zero
points; h is 1 or the diagonal of the layer's Gram matrix. With the whole Gram matrix the best few
candidates of each row are compared by d H d^T. Every candidate is snapped before it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.errors import RecipeError
from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.pairs import Pairs
from ptq.passes.rounding.layer_error import by_group, row_errors
from ptq.passes.rounding.row_histograms import RowHistograms

Array = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Snap = Callable[[Floats], Floats]
Judge = Callable[[Floats, int], Array]
"""(scale [rows], zero point) -> the error of nearest rounding, [rows]."""

CHUNK = 1 << 17  # elements judged at a time, so that temporaries stay in cache
FINALISTS = 6  # candidates a row that are compared by the whole Gram matrix
REACH = 3  # zero points to each side of the middle
MOST_ROOM = 2.0  # a pair of the largest weights fits without capping
EMPTY = 2.0**-8  # scale of a row of zeros, relative to the largest row's


@dataclass(frozen=True)
class Candidate:
    """One scale and zero point for every row, and what they cost.

    scale: [rows] as `snap` returned it, zero_point: [rows] int64, error: [rows] float64.
    """

    scale: Floats
    zero_point: Integers
    error: Array


def search_scales(
    w: Floats,
    grid: Grid,
    gram: Floats | None = None,
    *,
    diag: Floats | None = None,
    ratios: Sequence[float] = (),
    snap: Snap = lambda scale: scale,
    pairs: Pairs | None = None,
) -> tuple[Floats, Integers]:
    """Scale and zero point of every row with the least error of nearest rounding.

    w: [rows, K]. gram: [groups, K, K] or diag: [groups, K] weigh the error; neither: plain error.
    ratios: clip factors, relative to the scale that just covers the row; empty: by the width.
    snap: [rows] float64 > 0 -> [rows], the nearest scales that the integer program can run.
    pairs: levels are capped to these before they are judged.
    Returns [rows] as `snap` made them, [rows] int64.
    """
    if gram is not None:
        diag = np.einsum("gkk->gk", gram)
    weight = None if diag is None else row_weights(w, diag)
    judge = by_elements(w, weight, grid, pairs) if grid.uniform else by_bins(w, weight, grid)
    kept: list[Candidate] = []
    for scale, zero_point in candidates(w, grid, ratios or default_ratios(grid, pairs)):
        snapped = snap(scale)
        error = judge(snapped, zero_point)
        kept = best(kept, Candidate(snapped, np.full(len(w), zero_point), error), gram is not None)
    if gram is not None:
        kept = [judged(w, gram, grid, candidate, pairs) for candidate in kept]
    winner = np.argmin([c.error for c in kept], axis=0)[None]
    scale = np.take_along_axis(np.stack([c.scale for c in kept]), winner, axis=0)[0]
    offset = np.take_along_axis(np.stack([c.zero_point for c in kept]), winner, axis=0)[0]
    return scale, offset


def default_ratios(grid: Grid, pairs: Pairs | None = None) -> tuple[float, ...]:
    """Clip factors worth trying: narrow grids gain by clipping far, capped pairs by more room."""
    low = {2: 0.28, 3: 0.4, 4: 0.52, 5: 0.6, 6: 0.7}.get(grid.bits, 0.8)
    wider = () if pairs is None else tuple(np.linspace(1.0, MOST_ROOM, 17).tolist())[1:]
    return (*np.linspace(low, 1.0, 16).tolist(), *wider)


def zero_points(grid: Grid) -> tuple[int, ...]:
    """Zero points worth trying, the middle first; only those whose table fits int8."""
    if grid.symmetric:
        return (grid.middle,)
    step = max(1, grid.size // 32)
    offsets = sorted(range(-REACH * step, REACH * step + 1, step), key=abs)
    wanted = [grid.middle + offset for offset in offsets]
    return tuple(z for z in wanted if 0 <= z < grid.size and has_table(grid, z))


def has_table(grid: Grid, zero_point: int) -> bool:
    """True if the grid has an int8 table with this zero point."""
    try:
        grid.table(zero_point)
    except RecipeError:
        return False
    return True


def candidates(w: Floats, grid: Grid, ratios: Sequence[float]) -> Iterator[tuple[Array, int]]:
    """Every (scale [rows], zero point) to try; the scale is not snapped yet."""
    for zero_point in zero_points(grid):
        covering = covering_scales(w, grid, zero_point)
        for ratio in ratios:
            yield covering * ratio, zero_point


def covering_scales(w: Floats, grid: Grid, zero_point: int) -> Array:
    """The least scale whose levels cover each row: [rows] float64, > 0.

    A side without levels covers nothing; a row of zeros takes a small scale.
    """
    table = grid.table(zero_point).astype(np.float64)
    high = w.max(axis=1) / table[-1] if table[-1] > 0 else np.zeros(len(w))
    low = w.min(axis=1) / table[0] if table[0] < 0 else np.zeros(len(w))
    scale = np.maximum(high, low).astype(np.float64)
    largest = float(scale.max(initial=0.0)) or 1.0
    return np.where(scale > 0, scale, EMPTY * largest)


def row_weights(w: Floats, diag: Floats) -> Singles:
    """The diagonal that weighs each row: [rows, K], [groups, K] -> [rows, K] float32."""
    shape = by_group(w, diag).shape
    wide = np.broadcast_to(np.asarray(diag, np.float32)[:, None, :], shape)
    return wide.reshape(w.shape)


def by_elements(w: Floats, weight: Singles | None, grid: Grid, pairs: Pairs | None) -> Judge:
    """Errors from all elements of the rows."""
    return lambda scale, zero: nearest_errors(w, weight, grid, scale, zero, pairs)


def by_bins(w: Floats, weight: Singles | None, grid: Grid) -> Judge:
    """Errors from the rows' histograms: looking up a table's levels element by element is slow."""
    histograms = RowHistograms.of(w, weight)

    def errors(scale: Floats, zero_point: int) -> Array:
        levels = np.asarray(scale, np.float64)[:, None] * grid.table(zero_point)
        return histograms.errors(levels[:, None, :])[:, 0]

    return errors


def nearest_errors(
    w: Floats,
    weight: Singles | None,
    grid: Grid,
    scale: Floats,
    zero_point: int,
    pairs: Pairs | None = None,
) -> Array:
    """sum_k h_k (w^_k - w_k)^2 of nearest rounding: [rows] float64.

    Works in float32 (candidates are only compared), a chunk of rows at a time.
    """
    table = grid.table(zero_point).astype(np.float32)
    errors = np.empty(len(w))
    count = max(1, CHUNK // max(w.shape[1], 1))
    for start in range(0, len(w), count):
        part = slice(start, start + count)
        unit = np.asarray(scale[part], np.float64)[:, None]
        x = (w[part] / unit).astype(np.float32)
        levels = nearest_levels(x, grid, table)
        x -= levels if pairs is None else pairs.cap(levels)
        x *= x
        summed = x.sum(axis=1) if weight is None else np.einsum("rk,rk->r", x, weight[part])
        errors[part] = summed * np.square(unit[:, 0])
    return errors


def capped_codes(codes: Codes, zero_point: Integers, pairs: Pairs | None) -> Codes:
    """Codes of a uniform grid whose weights are pair-safe: [rows, K] uint8, [rows]."""
    if pairs is None:
        return codes
    offset = np.asarray(zero_point, np.int64)[:, None]
    return (pairs.cap(codes - offset) + offset).astype(np.uint8)


def nearest_levels(x: Singles, grid: Grid, table: Singles) -> Singles:
    """The nearest entries of one table: any shape -> the same shape, float32."""
    if not grid.uniform:
        found = np.searchsorted((table[1:] + table[:-1]) / 2, x)
        return np.asarray(table[found])
    levels = np.rint((x - 1) / 2) * 2 + 1 if grid.half else np.rint(x)
    np.maximum(levels, table[0], out=levels)
    np.minimum(levels, table[-1], out=levels)
    return np.asarray(levels)


def best(kept: list[Candidate], new: Candidate, several: bool) -> list[Candidate]:
    """The best candidates of every row, best first: one, or FINALISTS of them."""
    result = []
    for old in kept:
        better = new.error < old.error
        result.append(choose(better, new, old))
        new = choose(better, old, new)
    if len(result) < (FINALISTS if several else 1):
        result.append(new)
    return result


def choose(where: npt.NDArray[np.bool_], first: Candidate, second: Candidate) -> Candidate:
    """Rows of `first` where true, of `second` elsewhere."""
    return Candidate(
        np.where(where, first.scale, second.scale),
        np.where(where, first.zero_point, second.zero_point),
        np.where(where, first.error, second.error),
    )


def judged(
    w: Floats, gram: Floats, grid: Grid, candidate: Candidate, pairs: Pairs | None = None
) -> Candidate:
    """The candidate with its error by the whole Gram matrix."""
    codes = grid.quantize(w, candidate.scale, candidate.zero_point)
    codes = capped_codes(codes, candidate.zero_point, pairs)
    w_hat = grid.dequantize(codes, candidate.scale, candidate.zero_point)
    return Candidate(candidate.scale, candidate.zero_point, row_errors(w, w_hat, gram))
