"""Views: where elements are, and strides found again from that."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.kernels.view import View, addresses, strided

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
