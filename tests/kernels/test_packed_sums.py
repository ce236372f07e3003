"""Sums by vectors of bytes: every pair of codes, at every place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.elementwise import Add
from ptq.kernels.requantize import Rounding
from ptq.kernels.view import View
from tests.kernels.run_kernel import run
from tests.kernels.test_fast_kernels import NATIVE, needs_avx2

WIDTHS = [
    32,
    pytest.param(64, marks=pytest.mark.skipif("avx512vnni" not in NATIVE, reason="no AVX-512")),
]
EVERY = View((1 << 16,), (1,))
HALVES = Add(EVERY, EVERY, EVERY, (1 << 12, -(1 << 12)), (3, 250), Rounding(119, 5, 250, (1, 13)))


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    codes = np.arange(256, dtype=np.uint8)
    return np.repeat(codes, 256), np.tile(codes, 256)


@needs_avx2
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_of_codes(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    multipliers = tuple(int(m) for m in rng.integers(-(1 << 14), 1 << 14, 2))
    zeros = tuple(int(z) for z in rng.integers(0, 256, 2))
    low, zero, high = sorted(int(code) for code in rng.integers(0, 256, 3))
    kernel = Add(
        EVERY, EVERY, EVERY, (multipliers[0], multipliers[1]), (zeros[0], zeros[1]),
        Rounding(zero, low, high, (1, int(rng.integers(1, 15)))), vector_bytes=width,
    )  # fmt: skip
    assert kernel.packed is not None
    pairs = every_pair()
    np.testing.assert_array_equal(run(kernel, *pairs), kernel.oracle(*pairs))


@needs_avx2
@pytest.mark.parametrize("width", WIDTHS)
def test_halves_go_to_even(width: int) -> None:
    kernel, pairs = replace(HALVES, vector_bytes=width), every_pair()
    assert kernel.packed is not None
    wanted = kernel.oracle(*pairs)
    np.testing.assert_array_equal(run(kernel, *pairs), wanted)
    assert len(np.unique(wanted)) > 100


@needs_avx2
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("run_length", [64, 65, 127, 31])
def test_runs_of_any_length_stay_in_their_frame(run_length: int, width: int) -> None:
    shape = (3, run_length)
    a, b, y = (View(shape, (stride, 1), start) for stride, start in ((131, 1), (130, 0), (200, 7)))
    kernel = replace(HALVES, a=a, b=b, y=y, vector_bytes=width)
    rng = np.random.default_rng(1)
    codes = [rng.integers(0, 256, p.size).astype(np.uint8) for p in kernel.parameters()[:2]]
    wanted = np.zeros(y.size, np.uint8)
    y.read(wanted)[...] = kernel.oracle(*codes)
    np.testing.assert_array_equal(run(kernel, *codes), wanted)


@pytest.mark.parametrize(
    "changed",
    [
        {"vector_bytes": 0},
        {"multipliers": (1 << 15, 1)},
        {"dtypes": ("uint8", "uint16")},
        {"rounding": Rounding(0, 0, 65535, (1, 13))},
    ],
)
def test_sums_that_are_not_exact_are_added_otherwise(changed: dict[str, object]) -> None:
    kernel = replace(HALVES, **{"vector_bytes": 32, **changed})  # type: ignore[arg-type]
    assert kernel.packed is None
