"""Room for arrays: the budget, files beyond it, and what is given back."""

from pathlib import Path

import numpy as np

from ptq.scratch import Scratch


def test_arrays_beyond_the_budget_lie_in_files_that_go_with_them() -> None:
    with Scratch(100) as scratch:
        first, second = scratch.empty((10, 2), np.float32), scratch.empty((10, 2), np.float32)
        assert not isinstance(first, np.memmap)
        assert isinstance(second, np.memmap)
        path = Path(str(second.filename))
        second[...] = 7
        second.flush()
        assert np.fromfile(path, np.float32).tolist() == [7] * 20
        scratch.free(second)
        assert not path.exists()
        scratch.free(first)
        assert not isinstance(scratch.empty((25,), np.int32), np.memmap)  # its room was given back
        last = scratch.empty((1,), np.int8)
        assert isinstance(last, np.memmap)
    assert not path.parent.exists()


def test_empty_arrays_need_no_room() -> None:
    with Scratch(0) as scratch:
        assert scratch.empty((3, 0), np.float32).shape == (3, 0)
