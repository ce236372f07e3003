"""Arrays of several libraries, read where they lie."""

from __future__ import annotations

import array
import ctypes
import subprocess
import sys

import numpy as np
import pytest

from ptq.arrays import Dense, address_of, as_numpy, dense, floats, integers, room


def read(found: Dense | None) -> np.ndarray:
    """What is at the address."""
    assert found is not None
    size = int(np.prod(found.shape)) * np.dtype(found.dtype).itemsize
    return np.frombuffer(ctypes.string_at(found.address, size), found.dtype).reshape(found.shape)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "int8"])
def test_numpy_arrays_are_not_copied(dtype: str) -> None:
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    found = dense(x)
    np.testing.assert_array_equal(read(found), x)
    assert found is not None
    assert (found.address, found.dtype) == (x.ctypes.data, dtype)


def test_read_only_buffers_are_copied() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    x.flags.writeable = False
    np.testing.assert_array_equal(read(dense(x)), x)


def test_the_standard_library_s_arrays() -> None:
    np.testing.assert_array_equal(read(dense(array.array("f", [1, 2, 3]))), np.float32([1, 2, 3]))
    shaped = memoryview(bytes(range(48))).cast("d", [2, 3])
    np.testing.assert_array_equal(read(dense(shaped)), np.asarray(shaped))


def test_dlpack_is_not_copied_and_stays_while_it_is_used() -> None:
    import torch

    whole = torch.arange(60, dtype=torch.float32).reshape(5, 3, 4)
    found = dense(whole[1:3])
    assert found is not None
    assert found.address == whole[1:3].data_ptr()
    wanted = whole[1:3].numpy().copy()
    del whole
    np.testing.assert_array_equal(read(found), wanted)
    scalar = torch.tensor(7)
    assert read(dense(scalar)) == 7


def test_what_is_not_dense_or_no_number_is_none() -> None:
    import torch

    x = np.zeros((4, 6), np.float32)
    for other in (x[:, ::2], x.T, x.astype(">f4"), x.astype(complex), x > 0, [1.0], "text", None):
        assert dense(other) is None
    assert dense(torch.zeros(4, 6).T) is None
    assert dense(torch.zeros(4, 6, dtype=torch.complex64)) is None


def test_room_is_aligned_and_empty_where_asked() -> None:
    for size in (0, 1, 200):
        made = room(size, 64)
        assert (len(made), address_of(made) % 64) == (size, 0)
        assert not any(made)


def test_results_are_numpy_s_without_a_copy() -> None:
    made = floats((2, 3))
    found = as_numpy(made)
    made[1, 2] = 5
    np.testing.assert_array_equal(found, np.float32([[0, 0, 0], [0, 0, 5]]))
    assert as_numpy(floats(())).shape == ()
    assert list(integers(2)) == [0, 0]


def test_results_are_memoryviews_where_numpy_is_missing() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from ptq.arrays import as_numpy, floats\n"
        "made = as_numpy(floats((2, 3)))\n"
        "print(made.shape, made.format)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 3) f\n", done.stderr
