"""y = clamp(z + RNE(acc * M / 2^S)): exact, and equal to onnxruntime's float32 product."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq.integer.arithmetic import (
    Requantizer,
    exact_shift,
    nudge_scales,
    onnx_ratio,
    shift_half_even,
    short_multiplier,
)


@given(value=st.integers(-(2**45), 2**45), shift=st.integers(0, 30))
def test_shift_rounds_half_to_even_like_python(value: int, shift: int) -> None:
    got = shift_half_even(np.array([value]), np.array([shift]))[0]
    assert got == round(Fraction(value, 2**shift))


def test_ties_go_to_the_even_neighbour() -> None:
    ties = np.array([-3, -1, 1, 3, 5])
    got = shift_half_even(ties, np.array(1))
    np.testing.assert_array_equal(got, [-2, 0, 0, 2, 2])


@given(
    ratio=st.floats(1e-6, 4.0),
    zero_point=st.integers(0, 127).map(lambda z: 2 * z),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300)
def test_exact_multipliers_make_float32_and_integers_agree(
    ratio: float, zero_point: int, seed: int
) -> None:
    limit = exact_shift(zero_point)
    multiplier, shift = short_multiplier(np.array(ratio), limit)
    requantizer = Requantizer(multiplier, shift, zero_point)
    rng = np.random.default_rng(seed)
    acc = np.concatenate(
        [
            rng.integers(-(2**31) + 1, 2**31 - 1, 500),
            rng.integers(-int(600 / ratio) - 2, int(600 / ratio) + 3, 500),
            # accumulators whose product is an exact tie, where the rounding rules differ
            ((2 * rng.integers(-300, 300, 200) + 1) << np.maximum(shift - 1, 0)) // multiplier,
        ]
    )
    np.testing.assert_array_equal(requantizer.apply(acc), requantizer.simulate(acc))


@given(limit=st.integers(0, 20), ratio=st.floats(1e-9, 1e4))
def test_multiplier_is_short_positive_and_as_near_as_its_shift_allows(
    limit: int, ratio: float
) -> None:
    multiplier, shift = short_multiplier(np.array(ratio), limit)
    assert 1 <= multiplier < 2**24
    assert 0 <= shift <= limit
    error = abs(float(multiplier) / 2.0 ** float(shift) - ratio)
    assert error <= max(0.5 / 2**limit, ratio * 2.0**-23) or multiplier == 1


@given(seed=st.integers(0, 2000))
@settings(max_examples=60)
def test_channels_find_an_exact_scale_close_to_the_wanted_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (np.float32(v) for v in np.exp(rng.normal(size=2)) * 0.02)
    wanted = np.exp(rng.normal(size=300)) * 0.004
    limit = exact_shift(int(2 * rng.integers(0, 128)))
    scales = nudge_scales(wanted, x, y, limit)
    ratio = onnx_ratio(x, scales, y).astype(np.float64)
    found = ratio * 2.0**limit % 1 == 0
    assert found.mean() > 0.9
    exact = wanted * float(x) / float(y) * 2.0**limit
    error = np.abs(scales / wanted - 1) * exact  # in units of the finest multiplier
    assert np.median(error) <= 0.51
    assert error.max() <= 16.5


@pytest.mark.parametrize("ratio", [1e-30, 1e9, 1e30])
def test_ratios_out_of_reach_saturate_instead_of_breaking(ratio: float) -> None:
    multiplier, shift = short_multiplier(np.array(ratio), 16)
    assert 1 <= multiplier < 2**24
    assert 0 <= shift <= 16


def test_reach_shrinks_with_narrow_codes() -> None:
    assert exact_shift(0) == 16
    assert exact_shift(0, 0, 15) == 20
    assert exact_shift(128, 0, 255) == 16
