"""Coordinate descent on codes, alone and in turn with refitted scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.grid import Codes, Floats, Grid
from ptq.integer.arithmetic import nudge_scales
from ptq.integer.pairs import Pairs
from ptq.passes.rounding import (
    Factor,
    Feedback,
    capped_codes,
    coordinate_descent,
    feed_back,
    gptq,
    refine,
    refit_scale,
    row_errors,
)
from tests.passes.rounding_cases import GRIDS, Case, case


def errors(c: Case, codes: Codes, scale: Floats | None = None) -> Floats:
    w_hat = c.grid.dequantize(codes, c.scale if scale is None else scale, c.zero_point)
    return row_errors(c.w, w_hat, c.gram)


def nudge(scale: Floats) -> Floats:
    return nudge_scales(scale, np.float32(0.31), np.float32(0.11), 15)


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.sampled_from([1, 4]))
def test_every_sweep_lowers_every_row(seed: int, grid: Grid, groups: int) -> None:
    c = case(seed, grid, groups=groups)
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, grid.size, c.w.shape).astype(np.uint8)
    before = errors(c, codes)
    for _ in range(4):
        codes = coordinate_descent(c.w, codes, c.gram, grid, c.scale, c.zero_point, sweeps=1)
        after = errors(c, codes)
        assert (after <= before * (1 + 1e-9)).all()
        before = after


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_no_worse_than_nearest_and_no_single_move_helps(seed: int, grid: Grid) -> None:
    c = case(seed, grid, rows=4, size=10)
    nearest = grid.quantize(c.w, c.scale, c.zero_point)
    codes = coordinate_descent(c.w, nearest, c.gram, grid, c.scale, c.zero_point, sweeps=100)
    found = errors(c, codes)
    assert (found <= errors(c, nearest) * (1 + 1e-9)).all()
    slack = 1e-6 * float(np.einsum("gkk->gk", c.gram).max()) * np.square(c.scale)
    for k in range(10):
        for code in {0, grid.size - 1, *range(min(grid.size, 16))}:
            other = codes.copy()
            other[:, k] = code
            assert (errors(c, other) >= found - slack).all()


def test_a_code_may_move_several_levels() -> None:
    """Two columns that are nearly the same input: the second takes what the first cannot."""
    gram = np.array([[[1.0, 0.99], [0.99, 1.0]]])
    w = np.array([[5.4, 0.4]])
    codes = np.array([[4, 4]], np.uint8)
    found = coordinate_descent(
        w, codes, gram, Grid(4, symmetric=True), np.ones(1), np.array([4]), sweeps=9
    )
    assert np.abs(found.astype(int) - codes).max() > 1
    error = row_errors(w, found.astype(float) - 4, gram)
    assert error[0] < 0.05


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_polishing_gptq_gains_on_average(grid: Grid) -> None:
    gained, over_nearest = [], []
    for seed in range(20):
        c = case(seed, grid, size=48)
        start = gptq(c.w, c.gram, grid, c.scale, c.zero_point)
        codes = coordinate_descent(c.w, start, c.gram, grid, c.scale, c.zero_point)
        nearest = grid.quantize(c.w, c.scale, c.zero_point)
        gained.append(errors(c, codes).sum() / errors(c, start).sum())
        over_nearest.append(errors(c, codes).sum() / errors(c, nearest).sum())
    assert np.mean(gained) < 0.99
    assert np.mean(over_nearest) < 0.7


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_depthwise_rows_descend_as_if_alone(grid: Grid) -> None:
    c = case(1, grid, rows=6, size=9, groups=6)
    nearest = grid.quantize(c.w, c.scale, c.zero_point)
    together = coordinate_descent(c.w, nearest, c.gram, grid, c.scale, c.zero_point)
    assert (together != nearest).any()
    for row in range(6):
        part = slice(row, row + 1)
        options = (c.gram[part], grid, c.scale[part], c.zero_point[part])
        alone = coordinate_descent(c.w[part], nearest[part], *options)
        np.testing.assert_array_equal(together[part], alone)


def test_result_is_a_fixed_point_and_the_input_is_left_alone() -> None:
    c = case(2, Grid(3), size=150)
    nearest = c.grid.quantize(c.w, c.scale, c.zero_point)
    kept = nearest.copy()
    options = (c.gram, c.grid, c.scale, c.zero_point)
    codes = coordinate_descent(c.w, nearest, *options, sweeps=100)
    np.testing.assert_array_equal(nearest, kept)
    np.testing.assert_array_equal(codes, coordinate_descent(c.w, codes, *options))


def test_dead_columns_keep_their_codes() -> None:
    c = case(3, Grid(4))
    gram = c.gram.copy()
    gram[:, 5, :] = gram[:, :, 5] = 0
    codes = c.grid.quantize(c.w, c.scale, c.zero_point)
    codes[:, 5] = 11
    found = coordinate_descent(c.w, codes, gram, c.grid, c.scale, c.zero_point)
    assert (found[:, 5] == 11).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_refitted_scales_are_optimal_or_kept(seed: int, grid: Grid) -> None:
    c = case(seed, grid)
    codes = gptq(c.w, c.gram, grid, c.scale, c.zero_point)
    options = (c.w, codes, c.gram, grid, c.scale, c.zero_point)
    free = refit_scale(*options, lambda scale: scale)
    best = errors(c, codes, free)
    for factor in (0.999, 1.001):
        assert (errors(c, codes, free * factor) >= best * (1 - 1e-9)).all()
    snapped = refit_scale(*options, nudge)
    assert (errors(c, codes, snapped) <= errors(c, codes) * (1 + 1e-9)).all()


def test_snap_that_only_worsens_is_not_accepted() -> None:
    c = case(4, Grid(4))
    codes = c.grid.quantize(c.w, c.scale, c.zero_point)
    options = (c.w, codes, c.gram, c.grid, c.scale, c.zero_point)
    np.testing.assert_array_equal(refit_scale(*options, lambda scale: scale * 3), c.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_refining_scales_gains_over_codes_alone(grid: Grid) -> None:
    ratios = []
    for seed in range(10):
        c = case(seed, grid, size=48)
        snapped = nudge(c.scale)
        start = gptq(c.w, c.gram, grid, snapped, c.zero_point)
        codes = coordinate_descent(c.w, start, c.gram, grid, snapped, c.zero_point)
        both, scale = refine(c.w, start, c.gram, grid, snapped, c.zero_point, nudge)
        assert (errors(c, both, scale) <= errors(c, start, snapped) * (1 + 1e-9)).all()
        np.testing.assert_array_equal(nudge(scale), scale)
        ratios.append(errors(c, both, scale).sum() / errors(c, codes, snapped).sum())
    if grid.bits < 8:
        assert np.mean(ratios) < 0.99


@given(st.integers(0, 2**32 - 1), st.sampled_from([(24,), (6, 2, 2), (5, 3)]))
def test_rounding_stays_within_what_pairs_may_sum_to(seed: int, shape: tuple[int, ...]) -> None:
    """Better than capping what was rounded without a thought of it, as error is fed back."""
    c = case(seed, Grid(8, symmetric=True), size=int(np.prod(shape)))
    pairs = Pairs.of(shape, 255)
    tight = c.scale * 0.7
    options = (c.grid, tight, c.zero_point)
    factor = Factor.of(c.gram, Feedback(damp=0.0))
    codes, error = feed_back(c.w, factor, *options, pairs=pairs)
    np.testing.assert_allclose(error, errors(c, codes, tight), rtol=1e-6)
    assert pairs.safe(codes.astype(int) - 128)
    better, scale = refine(c.w, codes, c.gram, *options, nudge, pairs=pairs)
    assert pairs.safe(better.astype(int) - 128)
    assert (errors(c, better, scale) <= error * (1 + 1e-6)).all()


def test_room_for_pairs_costs_less_than_capping() -> None:
    ratios = []
    for seed in range(10):
        c = case(seed, Grid(8, symmetric=True), size=48)
        pairs, tight = Pairs.of((48,), 255), c.scale * 0.8
        options = (c.grid, tight, c.zero_point)
        factor = Factor.of(c.gram, Feedback(damp=0.0))
        _, within = feed_back(c.w, factor, *options, pairs=pairs)
        capped = capped_codes(feed_back(c.w, factor, *options)[0], c.zero_point, pairs)
        ratios.append(within.sum() / errors(c, capped, tight).sum())
    assert np.mean(ratios) < 0.8
