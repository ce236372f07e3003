"""Second-order rounding, column after column (GPTQ, Frantar et al., arXiv 2210.17323).

With H = L L^T, L lower triangular, the layer error is

    tr(dW H dW^T) = sum_k (L_kk dw_k + sum_{i>k} L_ik dw_i)^2        dw = w^ - w

so that, taken from the last column to the first, the best code of column k is the level nearest to

    w_k + sum_{i>k} (w_i - w^_i) L_ik / L_kk

This is GPTQ exactly (QuIP, arXiv 2307.13304, theorem 6) without its matrix inverse: one Cholesky
factorisation, then one matrix product a block of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.passes.rounding.layer_error import by_group, damped
from ptq.passes.rounding.levels import BlockLevels, Levels, levels_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feedback:
    """How errors are fed back.

    act_order: columns by falling diag(H), so that the important ones are rounded first.
    damp: share of mean(diag H) that is added to the diagonal, > 0.
    block: columns whose feedback to later ones waits for one matrix product.
    """

    act_order: bool = True
    damp: float = 0.01
    block: int = 128


def gptq(
    w: Floats,
    gram: Floats,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    feedback: Feedback = Feedback(),
) -> Codes:
    """Codes that keep each row's output close to the float row's: [rows, K] uint8.

    w: [rows, K]; gram: [groups, K, K], sum or mean of x x^T; scale, zero_point: [rows], or of one
    group [rows, blocks]: a block of columns keeps them whatever the order (static groups).
    Columns that never see an input take the nearest level and give no feedback.
    """
    rows = by_group(w, gram)
    order = column_order(gram, feedback.act_order)
    levels = levels_of(grid, scale, zero_point, order[0])
    groups = np.arange(len(gram))[:, None, None]
    matrix = gram[groups, order[:, :, None], order[:, None, :]]
    factor = np.linalg.cholesky(damped(matrix, feedback.damp))
    ordered = np.take_along_axis(rows, order[:, None, :], axis=2)
    rounded = round_backwards(ordered, factor, levels, feedback.block)
    codes = np.empty(rows.shape, np.uint8)
    np.put_along_axis(codes, order[:, None, :], rounded, axis=2)
    return codes.reshape(w.shape)


def column_order(gram: Floats, act_order: bool) -> npt.NDArray[np.intp]:
    """The columns, the first to be rounded last: [groups, K, K] -> [groups, K]."""
    if not act_order:
        return np.broadcast_to(np.arange(gram.shape[-1])[::-1], gram.shape[:2])
    return np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")[:, ::-1]


def round_backwards(rows: Array, factor: Floats, levels: Levels | BlockLevels, block: int) -> Codes:
    """Round the columns of [groups, n, K] from the last to the first.

    factor: [groups, K, K], the lower triangle L.
    """
    groups, n, size = rows.shape
    error = np.zeros_like(rows)
    codes = np.empty(rows.shape, np.uint8)
    pivots = np.einsum("gkk->gk", factor)
    for stop in range(size, 0, -block):
        start = max(stop - block, 0)
        pivot = pivots[:, None, start:stop]
        target = error[:, :, stop:] @ factor[:, stop:, start:stop]
        target = rows[:, :, start:stop] + target / pivot
        near = np.ascontiguousarray((factor[:, start:stop, start:stop] / pivot).swapaxes(1, 2))
        own = np.zeros(target.shape)
        for j in range(stop - start - 1, -1, -1):
            fed = own[:, :, j + 1 :] @ near[:, j, j + 1 :, None]
            here = levels.column(start + j)
            code = here.nearest((target[:, :, j] + fed[:, :, 0]).reshape(-1))
            own[:, :, j] = rows[:, :, start + j] - here.decode(code).reshape(groups, n)
            codes[:, :, start + j] = code.reshape(groups, n)
        error[:, :, start:stop] = own
    return codes
