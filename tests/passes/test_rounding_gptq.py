"""GPTQ: error feedback over any grid, dense and grouped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.grid import Grid
from ptq.passes.rounding import Feedback, damped, gptq, row_errors
from tests.passes.rounding_cases import GRIDS, case


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [True, False])
def test_identity_gram_is_nearest(grid: Grid, act_order: bool) -> None:
    c = case(1, grid)
    gram = np.eye(c.w.shape[1])[None]
    codes = gptq(c.w, gram, grid, c.scale, c.zero_point, Feedback(act_order=act_order))
    np.testing.assert_array_equal(codes, grid.quantize(c.w, c.scale, c.zero_point))


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_diagonal_gram_is_nearest(seed: int, grid: Grid) -> None:
    c = case(seed, grid)
    gram = np.diag(np.random.default_rng(seed).uniform(0, 9, c.w.shape[1]))[None]
    codes = gptq(c.w, gram, grid, c.scale, c.zero_point)
    np.testing.assert_array_equal(codes, grid.quantize(c.w, c.scale, c.zero_point))


@pytest.mark.parametrize("act_order", [True, False])
def test_same_codes_as_the_paper(act_order: bool) -> None:
    """Algorithm 1 of arXiv 2210.17323: e = (w - q) / U_ii, w -= e U, U = chol(H^-1)^T."""
    c = case(2, Grid(3), size=20)
    h = damped(c.gram, 0.01)[0]
    order = np.argsort(-np.diag(c.gram[0]), kind="stable") if act_order else np.arange(len(h))
    h, w = h[np.ix_(order, order)], c.w[:, order].copy()
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    expected = np.empty(w.shape, np.uint8)
    for i in range(len(h)):
        code = c.grid.quantize(w[:, i : i + 1], c.scale, c.zero_point)
        q = c.grid.dequantize(code, c.scale, c.zero_point)
        expected[:, order[i]] = code[:, 0]
        w[:, i:] -= (w[:, i : i + 1] - q) / upper[i, i] @ upper[i : i + 1, i:]
    codes = gptq(c.w, c.gram, c.grid, c.scale, c.zero_point, Feedback(act_order=act_order))
    np.testing.assert_array_equal(codes, expected)


def test_block_does_not_change_the_codes() -> None:
    c = case(3, Grid(4), rows=20, size=50)
    results = [
        gptq(c.w, c.gram, c.grid, c.scale, c.zero_point, Feedback(block=block))
        for block in (1, 7, 50, 128)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_groups_are_rounded_like_separate_layers(grid: Grid) -> None:
    c = case(4, grid, rows=12, size=9, groups=6)
    together = gptq(c.w, c.gram, grid, c.scale, c.zero_point)
    for g in range(6):
        part = slice(2 * g, 2 * g + 2)
        alone = gptq(c.w[part], c.gram[g : g + 1], grid, c.scale[part], c.zero_point[part])
        np.testing.assert_array_equal(together[part], alone)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_output_error_falls_below_nearest(grid: Grid) -> None:
    ratios = []
    for seed in range(20):
        c = case(seed, grid, size=48)
        nearest = grid.quantize(c.w, c.scale, c.zero_point)
        codes = gptq(c.w, c.gram, grid, c.scale, c.zero_point)
        before, after = (
            row_errors(c.w, grid.dequantize(x, c.scale, c.zero_point), c.gram).sum()
            for x in (nearest, codes)
        )
        ratios.append(after / before)
    assert np.mean(ratios) < 0.75


def test_dead_columns_take_the_nearest_level_and_disturb_nothing() -> None:
    c = case(5, Grid(3), size=24)
    gram = c.gram.copy()
    dead = [0, 7, 23]
    gram[:, dead, :] = gram[:, :, dead] = 0
    codes = gptq(c.w, gram, c.grid, c.scale, c.zero_point)
    nearest = c.grid.quantize(c.w, c.scale, c.zero_point)
    np.testing.assert_array_equal(codes[:, dead], nearest[:, dead])
    moved = c.w.copy()
    moved[:, dead] += 1.0
    again = gptq(moved, gram, c.grid, c.scale, c.zero_point)
    live = np.setdiff1d(np.arange(24), dead)
    np.testing.assert_array_equal(codes[:, live], again[:, live])


def test_layer_without_any_input_is_nearest() -> None:
    c = case(6, Grid(4))
    codes = gptq(c.w, np.zeros_like(c.gram), c.grid, c.scale, c.zero_point)
    np.testing.assert_array_equal(codes, c.grid.quantize(c.w, c.scale, c.zero_point))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    c = case(7, Grid(4), rows=12, size=9, groups=4)
    with pytest.raises(ValueError, match="wanted"):
        gptq(c.w[:10], c.gram, c.grid, c.scale[:10], c.zero_point[:10])
    with pytest.raises(ValueError, match="wanted"):
        gptq(c.w, c.gram[:, :8, :8], c.grid, c.scale, c.zero_point)
