"""Search of scales and zero points under a snapping function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.grid import Floats, Grid, Integers
from ptq.integer.arithmetic import nudge_scales
from ptq.passes.rounding import row_errors, search_scales
from tests.passes.rounding_cases import GRIDS, case


def nearest_error(w: Floats, grid: Grid, scale: Floats, zero_point: Integers) -> Floats:
    codes = grid.quantize(w, scale, zero_point)
    return np.asarray(np.square(grid.dequantize(codes, scale, zero_point) - w).sum(axis=1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_worse_than_the_covering_scale(grid: Grid) -> None:
    c = case(1, grid, size=60)
    table = grid.table(grid.middle).astype(np.float64)
    covering = np.maximum(c.w.max(axis=1) / table[-1], c.w.min(axis=1) / table[0])
    found = nearest_error(c.w, grid, c.scale, c.zero_point)
    plain = nearest_error(c.w, grid, covering, np.full(len(c.w), grid.middle))
    assert (found <= plain * (1 + 1e-5)).all()
    if grid.bits < 8:
        assert found.sum() < 0.9 * plain.sum()


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_every_scale_is_one_that_snap_returned(seed: int, grid: Grid) -> None:
    c = case(seed, grid)
    offered: list[set[float]] = [set() for _ in c.w]

    def snap(scale: Floats) -> Floats:
        snapped = nudge_scales(scale, np.float32(0.031), np.float32(0.11), 15)
        for seen, value in zip(offered, snapped.tolist(), strict=True):
            seen.add(value)
        return snapped

    for gram in (None, c.gram):
        scale, _ = search_scales(c.w, grid, gram, snap=snap)
        assert scale.dtype == np.float32
        assert all(s in seen for s, seen in zip(scale.tolist(), offered, strict=True))


def test_candidates_are_judged_after_snapping() -> None:
    """Scales may be powers of two only: the best of them is found, not the nearest to the best."""
    c = case(3, Grid(4, symmetric=True), rows=40, size=64)

    def snap(scale: Floats) -> Floats:
        return np.exp2(np.rint(np.log2(scale)))

    scale, zero_point = search_scales(c.w, c.grid, ratios=(0.2, 0.4, 0.7, 1.0, 1.5), snap=snap)
    found = nearest_error(c.w, c.grid, scale, zero_point)
    for factor in (0.5, 2.0):
        other = nearest_error(c.w, c.grid, scale * factor, zero_point)
        assert (found <= other * (1 + 1e-5)).all()


def test_weights_move_the_scale_towards_important_columns() -> None:
    """Only the small half of every row matters: its range is what the scale should cover."""
    generator = np.random.default_rng(4)
    w = generator.uniform(-1, 1, (8, 64))
    w[:, 32:] *= 4
    diag = np.ones((1, 64))
    diag[:, 32:] = 1e-4
    grid = Grid(4)
    plain, _ = search_scales(w, grid)
    weighted, _ = search_scales(w, grid, diag=diag)
    assert (weighted < 0.7 * plain).all()


@pytest.mark.parametrize("groups", [1, 3])
def test_gram_lowers_the_output_error(groups: int) -> None:
    plain_error = gram_error = 0.0
    for seed in range(10):
        c = case(seed, Grid(3), groups=groups)
        for gram in (None, c.gram):
            scale, zero_point = search_scales(c.w, c.grid, gram)
            codes = c.grid.quantize(c.w, scale, zero_point)
            w_hat = c.grid.dequantize(codes, scale, zero_point)
            error = float(row_errors(c.w, w_hat, c.gram).sum())
            plain_error, gram_error = (
                (plain_error + error, gram_error)
                if gram is None
                else (plain_error, gram_error + error)
            )
    assert gram_error < 0.95 * plain_error


def test_depthwise_diagonals_belong_to_their_own_rows() -> None:
    c = case(5, Grid(4), rows=6, size=9, groups=6)
    diag = np.einsum("gkk->gk", c.gram)
    scale, zero_point = search_scales(c.w, c.grid, diag=diag)
    for row in range(6):
        part = slice(row, row + 1)
        alone = search_scales(c.w[part], c.grid, diag=diag[part])
        assert (scale[row], zero_point[row]) == (alone[0][0], alone[1][0])


def test_symmetric_keeps_the_middle_and_others_leave_it() -> None:
    generator = np.random.default_rng(6)
    w = np.abs(generator.normal(size=(8, 50)))
    _, fixed = search_scales(w, Grid(4, symmetric=True))
    _, free = search_scales(w, Grid(4))
    assert (fixed == 8).all()
    assert (free <= 6).all()


def test_table_of_almost_power_one_is_as_good_as_uniform() -> None:
    """Its levels are those of the uniform grid, but for rounding to int8."""
    w = case(7, Grid(3), rows=30, size=60).w
    errors = [
        nearest_error(w, grid, *search_scales(w, grid)).sum()
        for grid in (Grid(3), Grid(3, power=1.0 + 1e-12))
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.03)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_row_of_zeros_gets_a_positive_scale(grid: Grid) -> None:
    w = case(8, grid).w.copy()
    w[3] = 0
    scale, zero_point = search_scales(w, grid)
    assert (scale > 0).all()
    error = nearest_error(w, grid, scale, zero_point)
    assert error[3] <= 1e-2 * error.mean()
    assert (search_scales(np.zeros((2, 5)), grid)[0] > 0).all()


def test_scaling_the_weight_scales_the_result() -> None:
    c = case(9, Grid(3))
    scale, zero_point = search_scales(c.w * 4.0, c.grid)
    np.testing.assert_allclose(scale, c.scale * 4.0)
    np.testing.assert_array_equal(zero_point, c.zero_point)
