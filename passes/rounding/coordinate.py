"""Coordinate descent on the layer error tr(dW H dW^T).

With everything but column k fixed, the error is a parabola in dw_k with its minimum at

    dw_k = -sum_{i != k} dw_i H_ik / H_kk

so the best code of column k is the level nearest to w_k + that, however many levels away it is.
Every step lowers the error; the cost does not depend on the number of samples. dW H is one matrix
product; after that a code that moves adds a row of H to it, and few move once rounding was good.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.pairs import Pairs
from ptq.passes.rounding.layer_error import by_group
from ptq.passes.rounding.levels import BlockLevels, Levels, levels_of
from ptq.passes.rounding.pair_room import PairRoom, with_alone

Array = npt.NDArray[np.float64]

LEAST_GAIN = 1e-9  # of H_kk scale^2: ties must not move for ever


def coordinate_descent(  # noqa: PLR0913 - the operands of `gptq`, and when to stop
    w: Floats,
    codes: Codes,
    gram: Floats,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    sweeps: int = 8,
    *,
    pairs: Pairs | None = None,
    settled: float = 0.0,
) -> Codes:
    """Improve the codes until a sweep gains no more than a share of the error, or for `sweeps`.

    w: [rows, K]; codes: [rows, K] uint8; gram: [groups, K, K]; scale, zero_point: [rows], or of one
    group [rows, blocks]. pairs: no weight moves beyond what these leave it (uniform grids).
    Returns [rows, K] uint8 whose error is at most that of `codes`. Columns that never see an input
    keep their codes.
    """
    levels = levels_of(grid, scale, zero_point, np.arange(w.shape[1]))
    rows = by_group(w, gram)
    room = None if pairs is None else PairRoom.of(pairs, zero_point, rows.shape)
    difference = by_group(levels.decode(codes.astype(np.float64)), gram) - rows
    pull = difference @ gram
    error = float(np.einsum("gnk,gnk->", pull, difference))
    middle = zero_point if zero_point.ndim == 1 else zero_point[:, 0]
    result = with_alone(codes.reshape(rows.shape), middle)
    for _ in range(sweeps):
        gained = sweep(rows, result, difference, pull, gram, levels, room)
        if gained <= settled * error:
            break
        error -= gained
    return np.ascontiguousarray(result[:, :, :-1]).reshape(codes.shape)


def sweep(
    rows: Array,
    codes: Codes,
    difference: Array,
    pull: Array,
    gram: Floats,
    levels: Levels | BlockLevels,
    room: PairRoom | None,
) -> float:
    """One pass over the columns; changes codes, difference and pull, [groups, n, K].

    codes has one column more, see `with_alone`. Returns how much the error fell.
    """
    groups, n, size = rows.shape
    gained = 0.0
    for k in range(size):
        curvature = gram[:, k, k, None]
        live = curvature > 0
        w, d, p = rows[:, :, k], difference[:, :, k], pull[:, :, k]
        here = levels.column(k)
        target = w + d - p / np.where(live, curvature, 1.0)
        code = here.nearest(target.reshape(-1)).reshape(groups, n)
        if room is not None:
            code = room.clamp(code, np.full(groups, k), codes)
        step = here.decode(code.reshape(-1)).reshape(groups, n) - w - d
        gain = -step * (2.0 * p + step * curvature)
        least = LEAST_GAIN * np.square(here.scale).reshape(groups, n)
        group, row = np.nonzero(live & (gain > least * curvature))
        if not len(row):
            continue
        moved = step[group, row]
        codes[group, row, k] = code[group, row]
        difference[group, row, k] += moved
        pull[group, row] += moved[:, None] * gram[group, k]
        gained += float(gain[group, row].sum())
    return gained
