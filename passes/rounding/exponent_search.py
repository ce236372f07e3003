"""Which shape of levels suits a weight: exponent and half offset, over all scales and zero points.

The error of nearest rounding, sum_k h_k (w^_k - w_k)^2, is minimised over clip factors and zero
points row by row, for every shape; a shape is judged by the sum over its rows. h is 1 (no samples,
PowerQuant's objective, arXiv 2301.09858) or the mean square of the input that the weight meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats, Grid
from ptq.passes.rounding.range_search import (
    covering_scales,
    default_ratios,
    has_table,
    row_weights,
    zero_points,
)
from ptq.passes.rounding.row_histograms import RowHistograms

Array = npt.NDArray[np.float64]

ROWS = 256  # judged at a time, so that temporaries stay in cache


def shape_errors(
    w: Floats,
    grids: Sequence[Grid],
    diag: Floats | None = None,
    ratios: Sequence[float] = (),
) -> Array:
    """Least error of every row on every grid: [grids, rows] float64.

    w: [rows, K]; diag: [groups, K], or None for plain error; ratios: clip factors, empty: by the
    width. A grid without any table costs infinity.
    """
    weight = None if diag is None else row_weights(w, diag)
    errors = np.full((len(grids), len(w)), np.inf)
    for start in range(0, len(w), ROWS):
        part = slice(start, start + ROWS)
        histograms = RowHistograms.of(w[part], None if weight is None else weight[part])
        for index, grid in enumerate(grids):
            errors[index, part] = least_errors(w[part], histograms, grid, ratios)
    return errors


def least_errors(
    w: Floats, histograms: RowHistograms, grid: Grid, ratios: Sequence[float]
) -> Array:
    """Least error of every row on one grid: [rows, K] -> [rows]."""
    factors = np.asarray(ratios or default_ratios(grid))
    least = np.full(len(w), np.inf)
    for zero_point in zero_points(grid):
        table = grid.table(zero_point).astype(np.float64)
        scale = covering_scales(w, grid, zero_point)[:, None] * factors
        found = histograms.errors(scale[:, :, None] * table).min(axis=1)
        np.minimum(least, found, out=least)
    return least


def candidate_grids(grid: Grid, powers: Sequence[float]) -> list[Grid]:
    """The grid in every shape that has an int8 table: each power, with and without half offset."""
    halves = (False,) if grid.symmetric else (False, True)
    shapes = [replace(grid, power=p, half=h) for p in powers for h in halves]
    return [shape for shape in shapes if has_table(shape, shape.middle)]
