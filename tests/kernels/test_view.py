"""Views: where elements are, and strides found again from that."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.kernels.view import View, addresses, split_shape, strided

VIEWS = [View((), (), 5), View((4,), (3,), 1), View((2, 3, 4), (1, 8, 2)), View((3, 2), (0, 1))]


@pytest.mark.parametrize("view", VIEWS)
def test_addresses_are_where_a_view_reads(view: View) -> None:
    flat = np.arange(view.size)
    np.testing.assert_array_equal(addresses(view), view.read(flat).reshape(-1))


@pytest.mark.parametrize("view", VIEWS)
def test_strides_are_found_again(view: View) -> None:
    found = strided(addresses(view).reshape(view.shape))
    assert found is not None
    np.testing.assert_array_equal(addresses(found), addresses(view))


def test_an_axis_of_two_strides_is_split() -> None:
    """Groups of channels in turns, as ShuffleNet has them."""
    places = np.arange(3 * 12).reshape(3, 4, 3).swapaxes(1, 2).reshape(3, 12)
    shape = split_shape(places)
    assert shape == (3, 3, 4)
    found = strided(places.reshape(shape))
    assert found is not None
    np.testing.assert_array_equal(found.read(np.arange(36)).reshape(3, 12), places)


@pytest.mark.parametrize("line", [[0, 1, 2, 3], [5], [], [0, 3, 1, 4, 5, 2], [0, 1, 5, 6, 9, 10]])
def test_other_axes_stay(line: list[int]) -> None:
    assert split_shape(np.array(line, np.int64)) == (len(line),)


def test_a_split_view_has_the_same_elements() -> None:
    view = View((2, 12), (40, 3), 5)
    flat = np.arange(100)
    split = view.split((2, 3, 4)).read(flat)
    np.testing.assert_array_equal(split.reshape(2, 12), view.read(flat))
