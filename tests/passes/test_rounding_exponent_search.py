"""Exponent search: errors from histograms, and the shape that made the weights is found."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.grid import Grid
from ptq.passes.rounding import candidate_grids, search_scales, shape_errors
from ptq.passes.rounding.row_histograms import RowHistograms

POWERS = (1.0, 1 / 0.9, 1 / 0.8, 1 / 0.7, 1 / 0.6)


def weights(seed: int, rows: int = 8, size: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(5, (rows, size)) * 0.1


@pytest.mark.parametrize("size", [1, 9, 400])
def test_histogram_errors_are_those_of_the_elements(size: int) -> None:
    w, rng = weights(0, size=size), np.random.default_rng(1)
    h = rng.random(w.shape)
    levels = np.sort(rng.normal(0, 0.1, (8, 5, 8)), axis=2)
    distance = np.abs(w[:, None, :, None] - levels[:, :, None, :]).min(axis=3)
    exact = (h[:, None] * distance**2).sum(axis=2)
    found = RowHistograms.of(w, h).errors(levels)
    # only elements that share a midpoint's bin are misplaced, and those are about equally near
    np.testing.assert_allclose(found, exact, rtol=5e-3, atol=1e-9)


def test_rows_of_one_value_have_no_error_on_a_level_there() -> None:
    w = np.array([[0.3] * 4, [0.0] * 4, [1e-30] * 3 + [1.1e-30]])
    errors = RowHistograms.of(w).errors(np.array([[[0.0, 0.3]], [[-1.0, 0.0]], [[-9.0, 1e-30]]]))
    np.testing.assert_allclose(errors, 0.0, atol=1e-12)


@pytest.mark.parametrize("wanted", [Grid(3, power=1 / 0.7), Grid(4), Grid(2, power=1 / 0.8)])
def test_the_shape_that_made_the_weights_is_found(wanted: Grid) -> None:
    rng = np.random.default_rng(2)
    table = wanted.table(wanted.middle).astype(float)
    w = table[rng.integers(0, wanted.size, (6, 500))] * rng.uniform(0.5, 2, (6, 1)) * 1e-3
    w += rng.normal(0, 1e-5, w.shape)
    shapes = candidate_grids(Grid(wanted.bits), POWERS)
    best = shapes[int(shape_errors(w, shapes).sum(axis=1).argmin())]
    assert best == wanted


def test_candidates_leave_out_shapes_without_a_table_and_halves_of_symmetric_grids() -> None:
    assert all(not shape.half for shape in candidate_grids(Grid(4, symmetric=True), POWERS))
    assert Grid(6, power=1 / 0.6) not in candidate_grids(Grid(6), POWERS)
    assert len(candidate_grids(Grid(4), POWERS)) == 2 * len(POWERS)


def test_weighing_by_the_inputs_changes_what_is_best() -> None:
    rng = np.random.default_rng(3)
    uniform = rng.integers(-8, 8, (4, 200)) / 8
    power = Grid(4, power=1 / 0.6).table(8)[rng.integers(0, 16, (4, 200))] / 127
    w = np.concatenate([uniform, power], axis=1)
    shapes = candidate_grids(Grid(4, symmetric=True), POWERS)
    chosen = []
    for loud in (slice(0, 200), slice(200, 400)):
        diag = np.full((1, 400), 1e-4)
        diag[:, loud] = 1.0
        chosen.append(shapes[int(shape_errors(w, shapes, diag).sum(axis=1).argmin())].power)
    assert chosen == [1.0, 1 / 0.6]


@pytest.mark.parametrize("grid", [Grid(3, power=1.3), Grid(4, power=1.25, half=True)])
def test_scales_searched_by_histograms_are_the_best_by_elements(grid: Grid) -> None:
    w = weights(4)
    scale, zero_point = search_scales(w, grid)
    error = np.square(grid.dequantize(grid.quantize(w, scale, zero_point), scale, zero_point) - w)
    for factor in (0.97, 1.03):
        moved = scale * factor
        codes = grid.quantize(w, moved, zero_point)
        other = np.square(grid.dequantize(codes, moved, zero_point) - w)
        # candidates are 3 % apart, so a neighbour may gain a little, never much
        assert error.sum() < other.sum() * 1.02
