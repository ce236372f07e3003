"""Second-order rounding, column after column (GPTQ, Frantar et al., arXiv 2210.17323).

With H = L L^T, L lower triangular, the layer error is

    tr(dW H dW^T) = sum_k (L_kk dw_k + sum_{i>k} L_ik dw_i)^2        dw = w^ - w

so that, taken from the last column to the first, the best code of column k is the level nearest to

    w_k + sum_{i>k} (w_i - w^_i) L_ik / L_kk

This is GPTQ exactly (QuIP, arXiv 2307.13304, theorem 6) without its matrix inverse: one Cholesky
factorisation, then one matrix product a block of columns; the sum is the row's error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers
from ptq.integer.pairs import Pairs
from ptq.passes.rounding.layer_error import by_group, damped
from ptq.passes.rounding.levels import BlockLevels, Levels, levels_of
from ptq.passes.rounding.pair_room import PairRoom

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
    block: int = 64


@dataclass(frozen=True)
class Factor:
    """H = L L^T, columns in the order of rounding, the last one first.

    order: [groups, K]; lower: [groups, K, K], the triangle L.
    """

    order: npt.NDArray[np.intp]
    lower: Array

    @staticmethod
    def of(gram: Floats, feedback: Feedback = Feedback()) -> Factor:
        """Factorise Gram matrices [groups, K, K]."""
        order = column_order(gram, feedback.act_order)
        groups = np.arange(len(gram))[:, None, None]
        matrix = gram[groups, order[:, :, None], order[:, None, :]]
        lower = np.linalg.cholesky(damped(matrix, feedback.damp))
        return Factor(order, np.asarray(lower, np.float64))


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
    by_group(w, gram)
    factor = Factor.of(gram, feedback)
    return feed_back(w, factor, grid, scale, zero_point, block=feedback.block)[0]


def feed_back(
    w: Floats,
    factor: Factor,
    grid: Grid,
    scale: Floats,
    zero_point: Integers,
    *,
    pairs: Pairs | None = None,
    block: int = Feedback.block,
) -> tuple[Codes, Array]:
    """`gptq` on a Gram matrix that is factorised already, and d H d^T of every row.

    pairs: no two weights sum to more than these allow (uniform grids).
    Returns [rows, K] uint8, [rows].
    """
    rows = by_group(w, factor.lower)
    levels = levels_of(grid, scale, zero_point, factor.order[0])
    room = None if pairs is None else PairRoom.of(pairs, zero_point, rows.shape)
    groups, n, size = rows.shape
    middle = zero_point if zero_point.ndim == 1 else zero_point[:, 0]
    codes = np.repeat(middle.reshape(groups, n, 1), size + 1, axis=2).astype(np.uint8)
    ordered = np.take_along_axis(rows, factor.order[:, None, :], axis=2)
    error = round_backwards(ordered.swapaxes(1, 2), factor, levels, codes, room, block)
    return np.ascontiguousarray(codes[:, :, :-1]).reshape(w.shape), error.reshape(-1)


def column_order(gram: Floats, act_order: bool) -> npt.NDArray[np.intp]:
    """The columns, the first to be rounded last: [groups, K, K] -> [groups, K]."""
    if not act_order:
        return np.broadcast_to(np.arange(gram.shape[-1])[::-1], gram.shape[:2])
    return np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")[:, ::-1]


def round_backwards(
    columns: Array,
    factor: Factor,
    levels: Levels | BlockLevels,
    codes: Codes,
    room: PairRoom | None,
    block: int,
) -> Array:
    """Round columns in order, [groups, K, n], from the last to the first.

    codes: [groups, n, K + 1] in the weight's own order, filled in. Returns the errors, [groups, n].
    """
    groups, size, n = columns.shape
    each, lower = np.arange(groups), factor.lower
    lost = np.zeros((groups, size, n))
    error = np.zeros((groups, n))
    pivots = np.einsum("gkk->gk", lower)[:, :, None]
    for stop in range(size, 0, -block):
        start = max(stop - block, 0)
        part = slice(start, stop)
        near = lower[:, part, part].swapaxes(1, 2) / pivots[:, part]
        fed = lower[:, stop:, part].swapaxes(1, 2) @ lost[:, stop:]
        target = columns[:, part] + fed / pivots[:, part]
        own = np.zeros(target.shape)
        for j in range(stop - start - 1, -1, -1):
            fed = near[:, j, None, j + 1 :] @ own[:, j + 1 :]
            wanted = target[:, j] + fed[:, 0]
            here, column = levels.column(start + j), factor.order[:, start + j]
            code = here.nearest(wanted.reshape(-1)).reshape(groups, n)
            if room is not None:
                code = room.clamp(code, column, codes)
            value = here.decode(code.reshape(-1)).reshape(groups, n)
            codes[each, :, column] = code
            own[:, j] = columns[:, start + j] - value
            error += np.square((wanted - value) * pivots[:, start + j])
        lost[:, part] = own
    return error
