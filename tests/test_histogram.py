"""ptq.histogram: nothing is lost by re-binning, and the memory never grows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq.errors import CalibrationError
from ptq.histogram import BINS, Histogram

MAGNITUDES = st.integers(-60, 60)
CHUNKS = st.lists(
    st.tuples(
        hnp.arrays(
            np.float32,
            st.integers(1, 40),
            elements=st.floats(-1, 1, width=32, allow_subnormal=False),
        ),
        MAGNITUDES,
    ),
    min_size=1,
    max_size=6,
).map(lambda pairs: [np.ldexp(x, power).astype(np.float32) for x, power in pairs])


def filled(chunks: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.update(chunk)
    return histogram


@given(CHUNKS)
def test_totals_extremes_and_zeros_survive_rebinning(chunks: list[np.ndarray]) -> None:
    histogram = filled(chunks)
    values = np.concatenate(chunks)
    assert histogram.total == values.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert (histogram.min, histogram.max) == (values.min(), values.max())


@given(CHUNKS)
def test_every_value_lies_in_its_bin(chunks: list[np.ndarray]) -> None:
    histogram = filled(chunks)
    values = np.concatenate(chunks).astype(np.float64)
    values = values[values != 0]
    bins = np.floor(values / histogram.width).astype(int) - histogram.first
    expected = np.bincount(bins, minlength=BINS)
    # float32 may put a value that lies a rounding error from an edge on the other side
    assert np.abs(np.cumsum(histogram.counts - expected)).max(initial=0) <= np.count_nonzero(
        np.abs(values / histogram.width - np.rint(values / histogram.width)) < 1e-3
    )


@given(CHUNKS, CHUNKS)
def test_merge_equals_one_histogram_over_both(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    merged, other = filled(one), filled(two)
    merged.merge(other)
    both = filled(one + two)
    assert merged.total == both.total
    assert merged.zeros == both.zeros
    assert (merged.min, merged.max) == (both.min, both.max)
    assert merged.support()[0][-1] == both.support()[0][-1]


def test_resolution_is_at_least_half_of_the_bins() -> None:
    histogram = filled([np.linspace(-0.001, 0.001, 9), np.linspace(-3, 5, 1000)])
    edges, counts = histogram.support()
    assert BINS / 2 <= len(counts) <= BINS
    assert (edges[0], edges[-1]) == (-3, 5)


def test_rebinned_counts_are_those_of_the_final_bins() -> None:
    """Growing to either side, from odd and even first bins."""
    rng = np.random.default_rng(0)
    chunks = [
        rng.standard_normal(500) * scale + shift
        for scale, shift in [(1, 0), (3, -2), (10, 5), (40, -90), (200, 700)]
    ]
    histogram = filled(chunks)
    edges = (histogram.first + np.arange(BINS + 1)) * histogram.width
    expected, _ = np.histogram(np.concatenate(chunks).astype(np.float32), edges)
    assert np.array_equal(histogram.counts, expected)


def test_a_value_just_below_the_last_edge_is_kept() -> None:
    """In float32, 1023.9999 - (-1024) is 2048, one bin too far."""
    histogram = filled([np.float32([-1024, 1023.99994])])
    assert (histogram.first, histogram.width) == (-1024, 1)
    assert histogram.counts[[0, -1]].tolist() == [1, 1]


def test_values_of_one_sign_keep_their_edges() -> None:
    edges, counts = filled([np.float32([1.5, 2.0, 2.5])]).support()
    assert (edges[0], edges[-1], counts.sum()) == (1.5, 2.5, 3)


def test_zeros_alone_have_no_bins() -> None:
    histogram = filled([np.zeros(7, np.float32)])
    assert (histogram.total, histogram.zeros, len(histogram.support()[1])) == (7, 7, 0)


def test_attention_mask_values_are_set_apart() -> None:
    histogram = filled([np.float32([-np.inf, -3.4e38, 1.0, -2.0, np.inf])])
    assert (histogram.masked, histogram.total, histogram.min, histogram.max) == (3, 2, -2, 1)


def test_nan_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        Histogram().update(np.float32([1.0, np.nan]))


def test_memory_does_not_grow_with_the_data() -> None:
    histogram = Histogram()
    rng = np.random.default_rng(0)
    histogram.update(rng.standard_normal(100_000))
    size = histogram.nbytes
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for scale in range(1, 40):
        histogram.update(rng.standard_normal(100_000) * scale)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert histogram.nbytes == size == BINS * 8
    assert grown < 4 * size
