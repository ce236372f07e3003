"""Second-order rounding, column after column (GPTQ, Frantar et al., arXiv 2210.17323).

With H = R R^T, R upper triangular, and M = R / diag(R) by columns, the layer error is

    tr(dW H dW^T) = sum_k R_kk^2 (dw_k + sum_{i<k} dw_i M_ik)^2        dw = w^ - w

so that, taken in order, the best code of column k is the nearest level to

    w_k + sum_{i<k} (w_i - w^_i) M_ik

This is GPTQ exactly (QuIP, arXiv 2307.13304, theorem 6) without its matrix inverse: one Cholesky
factorisation, then one matrix product a block of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.passes.rounding.layer_error import by_group, damped
from ptq.passes.rounding.levels import Levels

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

    w: [rows, K]; gram: [groups, K, K], sum or mean of x x^T; scale, zero_point: [rows].
    Columns that never see an input take the nearest level and give no feedback.
    """
    rows = by_group(w, gram)
    order = column_order(gram, feedback.act_order)
    ordered = np.take_along_axis(rows, order[:, None, :], axis=2)
    matrix = np.take_along_axis(gram, order[:, :, None], axis=1)
    matrix = np.take_along_axis(matrix, order[:, None, :], axis=2)
    coupling = couplings(damped(matrix, feedback.damp))
    levels = Levels.of(grid, scale, zero_point)
    codes = np.empty(rows.shape, np.uint8)
    rounded = round_in_order(ordered, coupling, levels, feedback.block)
    np.put_along_axis(codes, order[:, None, :], rounded, axis=2)
    return codes.reshape(w.shape)


def column_order(gram: Floats, act_order: bool) -> npt.NDArray[np.intp]:
    """The order in which columns are rounded: [groups, K, K] -> [groups, K]."""
    if not act_order:
        return np.broadcast_to(np.arange(gram.shape[-1]), gram.shape[:2])
    return np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")


def couplings(gram: Array) -> Array:
    """M transposed, of a positive definite H: [groups, K, K], row k holds M_ik, i <= k.

    H = R R^T with R upper triangular is the ordinary factorisation of H read backwards.
    """
    lower = np.linalg.cholesky(gram[:, ::-1, ::-1])
    lower /= np.einsum("gkk->gk", lower)[:, None, :].copy()
    return np.ascontiguousarray(lower[:, ::-1, ::-1].transpose(0, 2, 1))


def round_in_order(rows: Array, coupling: Array, levels: Levels, block: int) -> Codes:
    """Round the columns of [groups, n, K] from the first to the last."""
    groups, n, size = rows.shape
    error = np.zeros_like(rows)
    codes = np.empty(rows.shape, np.uint8)
    for start in range(0, size, block):
        stop = min(start + block, size)
        waiting = coupling[:, start:stop, :start].transpose(0, 2, 1)
        target = rows[:, :, start:stop] + error[:, :, :start] @ waiting
        own = np.zeros((groups, n, stop - start))
        for j, k in enumerate(range(start, stop)):
            fed = own[:, :, :j] @ coupling[:, k, start:k, None]
            code = levels.nearest((target[:, :, j] + fed[:, :, 0]).reshape(-1))
            own[:, :, j] = rows[:, :, k] - levels.decode(code).reshape(groups, n)
            codes[:, :, k] = code.reshape(groups, n)
        error[:, :, start:stop] = own
    return codes
