"""Blocks whose scales are small integers times the row's: group-wise weights of integer products.

    w^ = s_row * m_block * (q - z_row),   m in 1 .. largest

(VS-Quant, https://arxiv.org/abs/2102.04503): m (q - z) is an int8 weight, so that one accumulation
over all inputs serves every block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats, Grid, Integers
from ptq.passes.rounding.block_scales import Blocked, as_rows, block_grams, by_block
from ptq.passes.rounding.coordinate import coordinate_descent
from ptq.passes.rounding.error_feedback import Feedback, gptq
from ptq.passes.rounding.range_search import (
    by_elements,
    covering_scales,
    default_ratios,
    row_weights,
    zero_points,
)

Snap = Callable[[Floats], Floats]
Factors = npt.NDArray[np.int8]

PAIR_SAFE, WHOLE = 64, 127
"""Largest int8 weight: two of them that no CPU's 16-bit sums saturate on, or any."""
WIDEST = 4
"""Bits of the widest codes that leave room for factors."""


@dataclass(frozen=True)
class Blocks:
    """How a weight falls into blocks.

    size: inputs of a block. limit: largest magnitude of an int8 weight. snap: row scales to those
    that can run. alone: rounds a weight by itself, given grid, scales and zero points.
    """

    size: int
    limit: int
    snap: Snap
    alone: Callable[[Floats, Grid, Floats, Integers], Blocked]


def round_in_blocks(
    w: Floats, grid: Grid, gram: Floats | None, how: Blocks
) -> tuple[Blocked, Floats, Factors]:
    """The weight in blocks, row scales as `snap` returned them, and factors [rows, blocks].

    w: [rows, K], K a multiple of the size. gram: [1, K, K] rounds by GPTQ and descent.
    """
    wanted, zero = search_row_zero_points(w, grid, how.size, gram)
    row_scale, factors = split_scales(wanted, largest_factor(grid, zero, how.limit))
    row_scale = np.asarray(how.snap(row_scale), np.float64)
    scale = row_scale[:, None] * factors
    zero_point = np.broadcast_to(zero[:, None], scale.shape)
    if gram is None:
        return how.alone(w, grid, scale, zero_point), row_scale, factors
    codes = gptq(w, gram, grid, scale, zero_point, Feedback(damp=0.0))
    codes = coordinate_descent(w, codes, gram, grid, scale, zero_point)
    return Blocked(grid, codes, scale, zero_point), row_scale, factors


def search_row_zero_points(
    w: Floats, grid: Grid, size: int, gram: Floats | None
) -> tuple[Floats, Integers]:
    """Scales of blocks [rows, blocks], and zero points of rows [rows] that serve all their blocks.

    The error of nearest rounding is weighed with the Gram matrix's diagonal.
    """
    flat = as_rows(w, size)
    diag = None if gram is None else np.einsum("gkk->gk", block_grams(gram, size))
    judge = by_elements(flat, None if diag is None else row_weights(flat, diag), grid, None)
    rows = len(w)
    best_error = np.full(rows, np.inf)
    best_scale, best_zero = np.zeros((rows, w.shape[1] // size)), np.zeros(rows, int)
    for zero in zero_points(grid):
        covering = covering_scales(flat, grid, zero)
        trials = [covering * ratio for ratio in default_ratios(grid)]
        errors = np.stack([judge(scale, zero) for scale in trials])
        winner = errors.argmin(axis=0)[None]
        error = by_block(np.take_along_axis(errors, winner, 0)[0], rows).sum(axis=1)
        scale = by_block(np.take_along_axis(np.stack(trials), winner, 0)[0], rows)
        better = error < best_error
        best_scale = np.where(better[:, None], scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
        best_error = np.minimum(error, best_error)
    return best_scale, best_zero


def largest_factor(grid: Grid, zero_point: Integers, limit: int) -> Integers:
    """The largest factor of each row that keeps its weights within the limit: [rows]."""
    magnitude = np.maximum(zero_point, grid.size - 1 - zero_point)
    return np.asarray(np.maximum(1, limit // magnitude))


def split_scales(scale: Floats, largest: Integers) -> tuple[Floats, Factors]:
    """Row scales and factors whose products are nearest to the scales of blocks.

    scale: [rows, blocks]; largest: [rows] -> [rows], [rows, blocks] int8. Of the factors that a
    row's largest block may have, the one whose logarithmic errors are least in sum is taken.
    """
    top = scale.max(axis=1)
    best, least = largest.copy(), np.full(len(scale), np.inf)
    for factor in range(int(largest.max()), 0, -1):
        row = (top / factor)[:, None]
        ratio = np.clip(np.rint(scale / row), 1, largest[:, None]) * row / scale
        error = np.square(np.log(ratio)).sum(axis=1)
        better = (error < least) & (factor <= largest)
        best, least = np.where(better, factor, best), np.where(better, error, least)
    row_scale = top / best
    factors = np.clip(np.rint(scale / row_scale[:, None]), 1, largest[:, None])
    return row_scale, factors.astype(np.int8)
