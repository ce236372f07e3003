"""SQuant: flips that cancel the errors of kernels and channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptq.grid import Grid
from ptq.passes.rounding import squant
from tests.passes.rounding_cases import GRIDS, case


def errors(w: np.ndarray, codes: np.ndarray, grid: Grid, zero_point: np.ndarray) -> np.ndarray:
    """w^ - w in units of the scale; w is given in these units."""
    return np.asarray(grid.decode(codes, zero_point) - w)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 9]))
def test_kernel_and_channel_sums_are_bounded(seed: int, k: int) -> None:
    """Away from the grid's ends: below half a level in a channel, below one in a kernel.

    A kernel keeps within one half, and one element of it may move for the channel's sake.
    """
    w = np.random.default_rng(seed).uniform(-5.4, 4.4, (5, 12, k))
    zero_point = np.full(5, 8)
    e = errors(w, squant(w, Grid(4), np.ones(5), zero_point), Grid(4), zero_point)
    assert np.abs(e).max() <= 1.0 + 1e-9
    assert np.abs(e.sum(axis=2)).max() <= 1.0 + 1e-9
    assert np.abs(e.sum(axis=(1, 2))).max() <= 0.5 + 1e-9


@example(3647, Grid(2))  # an element that kernel and channel both want lower
@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS))
def test_modelled_error_never_exceeds_nearest(seed: int, grid: Grid) -> None:
    """The sums of kernels and channels fall; codes stay neighbours of the nearest."""
    c = case(seed, grid, rows=6, size=36)
    w = c.w.reshape(6, 4, 9)
    nearest = grid.quantize(w, c.scale, c.zero_point)
    codes = squant(w, grid, c.scale, c.zero_point)
    assert np.abs(codes.astype(int) - nearest).max() <= 1
    scaled = w / c.scale[:, None, None]
    before = errors(scaled, nearest, grid, c.zero_point).sum(axis=(1, 2))
    after = errors(scaled, codes, grid, c.zero_point).sum(axis=(1, 2))
    assert np.abs(after).sum() <= np.abs(before).sum() + 1e-9


@pytest.mark.parametrize("grid", [Grid(3), Grid(4), Grid(4, half=True), Grid(3, power=1.3)])
def test_output_error_falls_where_inputs_share_their_mean(grid: Grid) -> None:
    """Inputs 1 + noise: the error of a channel's sum counts most."""
    ratios = []
    for seed in range(10):
        c = case(seed, grid, rows=16, size=72)
        w = c.w.reshape(16, 8, 9)
        x = 1 + np.random.default_rng(seed).normal(size=(72, 500)) * 0.3
        outputs = []
        for codes in (
            grid.quantize(w, c.scale, c.zero_point),
            squant(w, grid, c.scale, c.zero_point),
        ):
            w_hat = grid.dequantize(codes, c.scale, c.zero_point).reshape(16, 72)
            outputs.append(np.square((w_hat - c.w) @ x).sum())
        ratios.append(outputs[1] / outputs[0])
    assert np.mean(ratios) < 0.4


def test_exact_weights_stay() -> None:
    grid, zero_point = Grid(4), np.array([8, 7])
    codes = np.random.default_rng(1).integers(0, 16, (2, 3, 9)).astype(np.uint8)
    w = grid.dequantize(codes, np.array([0.5, 2.0]), zero_point)
    np.testing.assert_array_equal(squant(w, grid, np.array([0.5, 2.0]), zero_point), codes)


def test_codes_at_the_end_of_the_grid_do_not_leave_it() -> None:
    w = np.full((1, 2, 9), 9.0)
    codes = squant(w, Grid(4), np.ones(1), np.array([8]))
    assert (codes == 15).all()


def test_smallest_kernel_by_hand() -> None:
    """Errors -.4 -.3 -.2 sum to -.9: the one that costs least, the largest, moves up by one."""
    w = np.array([[[1.4, 2.3, 3.2]]])
    codes = squant(w, Grid(4), np.ones(1), np.array([8]))
    np.testing.assert_array_equal(codes[0, 0], [8 + 2, 8 + 2, 8 + 3])
