"""Grid: T = k for uniform levels, int8 tables for power levels; the table is the grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.errors import RecipeError
from ptq.grid import Grid


@given(bits=st.integers(2, 8), z=st.integers(0, 255), seed=st.integers(0, 99))
def test_uniform_quantisation_is_affine_bit_for_bit(bits: int, z: int, seed: int) -> None:
    grid, z = Grid(bits), z % (1 << bits)
    if z == 0 and bits == 8:
        z = 128  # levels 0..255 do not fit int8
    rng = np.random.default_rng(seed)
    w, scale = rng.normal(size=(3, 7)), rng.uniform(0.01, 1, 3)
    zero = np.full(3, z)
    try:
        grid.table(z)
    except RecipeError:
        return
    codes = grid.quantize(w, scale, zero)
    expected = np.clip(np.rint(w / scale[:, None]) + z, 0, 2**bits - 1)
    np.testing.assert_array_equal(codes, expected)
    values = grid.dequantize(codes, scale, zero)
    np.testing.assert_array_equal(values, (expected - z) * scale[:, None])


@given(
    bits=st.integers(2, 4),
    power=st.floats(1.05, 2.5),
    half=st.booleans(),
    shift=st.integers(-1, 1),
)
def test_power_tables_are_strictly_increasing_int8(
    bits: int, power: float, half: bool, shift: int
) -> None:
    grid = Grid(bits, power=power, half=half)
    try:
        table = grid.table(grid.middle + shift)
    except RecipeError:
        return  # levels that collapse in int8 are refused, never merged
    assert table.dtype == np.int8
    assert (np.diff(table.astype(int)) >= 1).all()
    assert np.abs(table.astype(int)).max() == 127


@given(power=st.floats(1.0, 2.2), seed=st.integers(0, 50))
def test_quantize_picks_the_nearest_level(power: float, seed: int) -> None:
    grid = Grid(3, power=power)
    rng = np.random.default_rng(seed)
    w, scale, zero = rng.normal(size=(2, 9)), rng.uniform(0.001, 0.05, 2), np.array([3, 4])
    chosen = grid.dequantize(grid.quantize(w, scale, zero), scale, zero)
    levels = grid.tables(zero) * scale[:, None]
    best = np.abs(w[:, :, None] - levels[:, None, :]).min(axis=2)
    np.testing.assert_allclose(np.abs(w - chosen), best, rtol=1e-9)


def test_zero_is_exact_without_half_and_absent_with_it() -> None:
    assert 0 in Grid(4, power=1.3).table(7)
    assert 0 not in Grid(4, power=1.3, half=True).table(7)


@given(factor=st.floats(0.01, 100))
def test_quantisation_is_scale_equivariant(factor: float) -> None:
    grid, w = Grid(4, power=1.5), np.linspace(-1, 1, 16).reshape(2, 8)
    scale, zero = np.array([0.01, 0.008]), np.array([8, 7])
    one = grid.quantize(w * 1.0, scale, zero)
    other = grid.quantize(w * factor, scale * factor, zero)
    assert np.abs(one.astype(int) - other).max() <= 1  # only exact midpoints may move
    assert (one != other).mean() < 0.1


@pytest.mark.parametrize("arguments", [{"bits": 1}, {"bits": 9}, {"power": 0.5}, {"half": True}])
def test_impossible_grids_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(RecipeError):
        Grid(**arguments)  # type: ignore[arg-type]
