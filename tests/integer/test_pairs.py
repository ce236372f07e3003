"""Pairs of int8 weights that a 16-bit sum of products must not saturate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq.integer.pairs import Pairs, convolution_pairs

SHAPES = st.sampled_from([(7,), (8,), (3, 3, 3), (4, 1, 1), (5, 2), (2, 3, 2), (1,)])
TOPS = st.sampled_from([255, 180, 127, 15])


def partial_sums(rows, order, top):
    """Every sum of two neighbouring products with codes at their ends, as the CPU adds them."""
    wide = rows[:, order].astype(np.int64)
    wide = wide[:, : 2 * (wide.shape[1] // 2)]
    first, second = wide[:, 0::2], wide[:, 1::2]
    return [first * a + second * b for a in (0, top) for b in (0, top)]


def orders_of(shape):
    elements = np.arange(np.prod(shape)).reshape(shape)
    return [elements.ravel(), np.moveaxis(elements, 0, -1).ravel()]


@settings(max_examples=200)
@given(SHAPES, TOPS, st.integers(0, 2**32 - 1))
def test_capped_rows_never_saturate_in_either_order(shape, top, seed):
    rows = np.random.default_rng(seed).integers(-128, 128, (6, int(np.prod(shape))))
    pairs = Pairs.of(shape, top)
    capped = pairs.cap(rows)
    assert pairs.safe(capped)
    for order in orders_of(shape):
        for sums in partial_sums(capped, order, top):
            assert sums.min(initial=0) >= -(2**15)
            assert sums.max(initial=0) < 2**15


@settings(max_examples=100)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_capping_moves_weights_towards_zero_only_and_a_second_time_not_at_all(shape, seed):
    rows = np.random.default_rng(seed).integers(-128, 128, (6, int(np.prod(shape))))
    pairs = Pairs.of(shape, 255)
    capped = pairs.cap(rows)
    assert (np.abs(capped) <= np.abs(rows)).all()
    assert (capped * rows >= 0).all()
    np.testing.assert_array_equal(pairs.cap(capped), capped)


def test_safe_rows_stay_as_they_are():
    rows = np.array([[127, 1, -128, 0], [64, 64, -64, -64]])
    pairs = Pairs.of((4,), 255)
    assert pairs.safe(rows)
    np.testing.assert_array_equal(pairs.cap(rows), rows)


def test_what_is_too_much_is_taken_from_the_larger_weight_first():
    pairs = Pairs.of((2,), 255)
    np.testing.assert_array_equal(
        pairs.cap(np.array([[127, 30], [-100, -90]])), [[98, 30], [-64, -64]]
    )


def test_a_pair_that_meets_only_with_channels_last_is_found():
    # [in, kernel]: elements 0 and 3 meet when the channels move last.
    rows = np.array([[100, 0, 0, 100, 0, 0]])
    assert Pairs.of((6,), 255).safe(rows)
    assert not Pairs.of((2, 3), 255).safe(rows)


@pytest.mark.parametrize(
    ("shape", "groups", "found"), [((8, 1, 3, 3), 8, False), ((16, 1, 3, 3), 8, True)]
)
def test_only_a_channel_of_its_own_is_safe_whatever_its_weights(shape, groups, found):
    assert (convolution_pairs(shape, groups, 255) is not None) == found
