"""Blocks of columns with scales of their own."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.grid import Grid
from ptq.passes.rounding import Feedback, coordinate_descent, gptq, row_errors
from ptq.passes.rounding.block_scales import (
    Blocked,
    nearest_blocks,
    refine_blocks,
    refit_block_scales,
    search_block_scales,
)

SIZE = 16


def case(seed: int = 0, rows: int = 6, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A weight [rows, size] and second moments [1, size, size] with loud columns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, size)) @ rng.normal(size=(size, size)) * rng.uniform(0.1, 3, size)
    return rng.normal(size=(rows, size)), (x.T @ x / 400)[None]


def test_every_block_is_searched_as_if_alone() -> None:
    w, gram = case()
    scale, zero_point = search_block_scales(w, Grid(3), SIZE, gram)
    own, own_zero = search_block_scales(w[:, 16:32], Grid(3), SIZE, gram[:, 16:32, 16:32])
    np.testing.assert_array_equal(scale[:, 1], own[:, 0])
    np.testing.assert_array_equal(zero_point[:, 1], own_zero[:, 0])


def test_nearest_levels_are_within_half_a_step() -> None:
    w, _ = case()
    scale = np.full((6, 4), np.abs(w).max() / 7)
    found = nearest_blocks(w, Grid(4), scale, np.full((6, 4), 8))
    assert np.abs(found.dequantize() - w).max() <= scale.max() / 2 + 1e-12


@pytest.mark.parametrize("act_order", [False, True])
def test_one_block_is_the_same_as_rows(act_order: bool) -> None:
    w, gram = case()
    scale, zero_point = np.full(6, 0.3), np.full(6, 4)
    how = Feedback(act_order)
    rows = gptq(w, gram, Grid(3), scale, zero_point, how)
    blocks = gptq(w, gram, Grid(3), scale[:, None], zero_point[:, None], how)
    np.testing.assert_array_equal(rows, blocks)
    start = np.full(w.shape, 4, np.uint8)
    one = coordinate_descent(w, start, gram, Grid(3), scale, zero_point)
    other = coordinate_descent(w, start, gram, Grid(3), scale[:, None], zero_point[:, None])
    np.testing.assert_array_equal(one, other)


def test_a_column_keeps_its_block_whatever_the_order() -> None:
    """With a diagonal Gram matrix there is no feedback: every order gives the nearest levels."""
    w, _ = case()
    gram = np.diag(np.random.default_rng(1).uniform(0.5, 2, 64))[None]
    scale, zero_point = search_block_scales(w, Grid(3), SIZE)
    codes = gptq(w, gram, Grid(3), scale, zero_point, Feedback(act_order=True))
    np.testing.assert_array_equal(codes, nearest_blocks(w, Grid(3), scale, zero_point).codes)


def test_feedback_descent_and_refitting_lower_the_error_in_turn() -> None:
    w, gram = case()
    scale, zero_point = search_block_scales(w, Grid(3), SIZE, gram)
    nearest = nearest_blocks(w, Grid(3), scale, zero_point)
    codes = gptq(w, gram, Grid(3), scale, zero_point)
    second = Blocked(Grid(3), codes, scale, zero_point)
    refined = refine_blocks(w, second, gram)
    errors = [row_errors(w, f.dequantize(), gram) for f in (nearest, second, refined)]
    assert errors[0].sum() > errors[1].sum() > errors[2].sum()
    assert (errors[2] <= errors[1] * (1 + 1e-12)).all()


def test_refitted_scales_are_the_least_squares_solution() -> None:
    w, gram = case(rows=1, size=32)
    scale, zero_point = search_block_scales(w, Grid(4), SIZE, gram)
    found = nearest_blocks(w, Grid(4), scale, zero_point)
    refitted = refit_block_scales(w, found, gram)
    root = np.linalg.cholesky(gram[0])
    t = found.integers().reshape(2, SIZE)
    design = np.stack([np.r_[t[0], 0 * t[0]] @ root, np.r_[0 * t[1], t[1]] @ root], 1)
    wanted = np.linalg.lstsq(design, (w @ root)[0], rcond=None)[0]
    np.testing.assert_allclose(refitted[0], wanted, rtol=1e-4)  # the ridge


def test_blocks_that_do_not_fit_are_an_error() -> None:
    w, gram = case()
    with pytest.raises(ValueError, match="equal blocks"):
        gptq(w, gram, Grid(3), np.ones((6, 5)), np.full((6, 5), 4))
