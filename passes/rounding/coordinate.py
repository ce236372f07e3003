"""Coordinate descent on the layer error tr(dW H dW^T).

With everything but column k fixed, the error is a parabola in dw_k with its minimum at

    dw_k = -sum_{i != k} dw_i H_ik / H_kk

so the best code of column k is the level nearest to w_k + that, however many levels away it is.
Every step lowers the error; the cost does not depend on the number of samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.passes.rounding.layer_error import by_group
from ptq.passes.rounding.levels import BlockLevels, Levels, levels_of

Array = npt.NDArray[np.float64]

BLOCK = 64
LEAST_GAIN = 1e-9  # of H_kk scale^2: ties must not move for ever


def coordinate_descent(
    w: Floats,
    codes: Codes,
    gram: Floats,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    sweeps: int = 8,
) -> Codes:
    """Improve the codes until nothing changes, or for `sweeps` passes over the columns.

    w: [rows, K]; codes: [rows, K] uint8; gram: [groups, K, K]; scale, zero_point: [rows], or of one
    group [rows, blocks].
    Returns [rows, K] uint8 whose error is at most that of `codes`. Columns that never see an input
    keep their codes.
    """
    levels = levels_of(grid, scale, zero_point, np.arange(w.shape[1]))
    rows = by_group(w, gram)
    difference = by_group(levels.decode(codes.astype(np.float64)), gram) - rows
    result = codes.reshape(rows.shape).copy()
    for _ in range(sweeps):
        before = result.copy()
        for start in range(0, rows.shape[2], BLOCK):
            descend(slice(start, start + BLOCK), rows, result, difference, gram, levels)
        if np.array_equal(before, result):
            break
    return result.reshape(codes.shape)


def descend(
    block: slice,
    rows: Array,
    codes: Codes,
    difference: Array,
    gram: Floats,
    levels: Levels | BlockLevels,
) -> None:
    """One pass over a block of columns; changes `codes` and `difference`, [groups, n, K]."""
    groups, n, _ = rows.shape
    pull = difference @ gram[:, :, block]
    own = np.ascontiguousarray(difference[:, :, block])
    near = gram[:, block, block]
    for j in range(own.shape[2]):
        curvature = near[:, j, j, None]
        live = curvature > 0
        w, d, p = rows[:, :, block.start + j], own[:, :, j], pull[:, :, j]
        target = w + d - p / np.where(live, curvature, 1.0)
        here = levels.column(block.start + j)
        code = here.nearest(target.reshape(-1))
        step = here.decode(code).reshape(groups, n) - w - d
        gain = -step * (2.0 * p + step * curvature)
        least = LEAST_GAIN * np.square(here.scale).reshape(groups, n)
        take = live & (gain > least * curvature)
        if not take.any():
            continue
        step = np.where(take, step, 0.0)
        pull[:, :, j + 1 :] += step[:, :, None] * near[:, None, j, j + 1 :]
        own[:, :, j] += step
        column = codes[:, :, block.start + j]
        column[take] = code.reshape(groups, n)[take]
    difference[:, :, block] = own
