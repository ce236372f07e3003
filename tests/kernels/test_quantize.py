"""Codes of floats by vectors: the division is exact, and channels meet in the right order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.boundary import Quantize
from ptq.kernels.functions import compile_for_host
from ptq.kernels.view import View
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.frames import Frame
from ptq.targets.tvm.layout import view_of
from tests.kernels.run_kernel import alone, run
from tests.kernels.test_fast_kernels import needs_avx2

TARGETS = ("llvm:native", "llvm:x86-64-v3")


def near_halves(scale: np.float32, codes: np.ndarray) -> np.ndarray:
    """Floats whose quotients are next to those that are half way between two codes."""
    middle = ((codes + 0.5) * np.float64(scale)).astype(np.float32)
    around = [middle.view(np.int32) + places for places in range(-4, 5)]
    return np.concatenate(around).view(np.float32)


@needs_avx2
@pytest.mark.parametrize("high", [255, 65535])
@pytest.mark.parametrize("seed", range(6))
def test_quotients_are_rounded_as_by_a_division(seed: int, high: int) -> None:
    rng = np.random.default_rng(seed)
    scale = np.float32(np.exp(rng.uniform(-12, 3)))
    zero = int(rng.integers(0, high + 1))
    ends = np.float32([0, -0.0, 1e-45, -1e-39, 3e38, -3e38, np.inf, -np.inf])
    x = near_halves(scale, np.arange(-zero - 3, high - zero + 3))
    x = np.concatenate([x, ends, rng.normal(size=999).astype(np.float32) * scale * high])
    line = View((len(x),), (1,))
    for fused in (True, False):
        kernel = Quantize(line, line, float(scale), zero, 0, high, fused)
        with np.errstate(over="ignore"):
            wanted = kernel.oracle(x)
        np.testing.assert_array_equal(run(kernel, x), wanted)


@needs_avx2
def test_what_is_no_number_has_the_lowest_code() -> None:
    line = View((20,), (1,))
    for fused in (False, True):
        kernel = Quantize(line, line, 0.1, 100, 3, 250, fused)
        np.testing.assert_array_equal(run(kernel, np.full(20, np.nan, np.float32)), 3)


LAYOUTS: list[tuple[Any, Frame]] = [
    ((2, channels, 3, width), Frame(1, 2, 0, 1) if framed else Frame())
    for channels in (1, 2, 3, 4, 5)
    for width in (16, 41, 7)
    for framed in (False, True)
]


@needs_avx2
@pytest.mark.parametrize(("shape", "frame"), LAYOUTS)
@pytest.mark.parametrize("target", TARGETS)
def test_channels_meet_in_their_pixels(shape: Any, frame: Frame, target: str) -> None:
    high = 65535 if shape[1] == 3 and shape[3] == 41 and frame == Frame() else 255
    kernel = Quantize(view_of(shape, False), frame.inside(shape), 0.01, 90, 2, high, fused=True)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    wanted = np.zeros(kernel.y.size, kernel.dtype)
    kernel.y.read(wanted)[...] = kernel.oracle(x.reshape(-1))
    np.testing.assert_array_equal(run(kernel, x, target=target), wanted)
    assert len(np.unique(wanted)) > 20


@pytest.mark.parametrize(
    ("cpu", "instruction"),
    [
        ("x86_64-linux-gnu:sapphirerapids", "vfmadd"),
        ("aarch64-linux-gnu:generic+dotprod", "fmla"),
    ],
)
def test_corrections_are_single_instructions(cpu: str, instruction: str) -> None:
    shape = (1, 3, 2, 32)
    kernel = Quantize(view_of(shape, False), view_of(shape, True), 0.01, 90, 0, 255, fused=True)
    machine = Description.parse(f"llvm:{cpu}").resolved().target()
    text = compile_for_host(alone(kernel), machine).mod.inspect_source("asm")
    assert instruction in text
    assert "fmaf" not in text
