"""Convolution by AMX equals its oracle, and that of the kernel that it was made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.functions import compile_for_host
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import pack
from ptq.kernels.palette import find_palette
from ptq.kernels.requantize import Rounding
from ptq.kernels.tile_convolution import TileConvolution, in_tiles
from ptq.targets.tvm.description import Description
from tests.kernels.run_kernel import alone, run
from tests.kernels.test_fast_kernels import FRAMED, NATIVE, contents, framed

TARGET = "llvm:sapphirerapids"
needs_amx = pytest.mark.skipif("amx" not in NATIVE, reason="this processor has no AMX")
ROUND = Rounding(118, 3, 250, floats=True, fractions=True)


def tiled(
    runs: tuple[int, ...], run_bytes: int, places: tuple[int, ...], out: int, **others: Any
) -> TileConvolution:
    """places: bytes of a row and of a pixel, out rows, out width."""
    rounding = others.pop("rounding", ROUND)
    made = PackedConvolution(
        "avx512vnni", Tile(6, 4, 2), runs, run_bytes, *places, out, rounding, **others
    )
    return in_tiles(made)


CASES = {
    "rows_of_a_window": tiled((0, 70, 140), 21, (70, 7, 5, 8), 32),
    "one_tile": tiled((0,), 64, (0, 64, 1, 16), 16),
    "three_images": tiled((0,), 200, (0, 200, 1, 61), 16),
    "surplus_channels": tiled((0,), 96, (0, 96, 1, 49), 24),
    "every_size_of_surplus": tiled((0,), 33, (0, 33, 1, 5), 47),
    "steps_of_a_run": tiled((0, 700), 300, (700, 3, 5, 100), 16),
    "groups": tiled(
        (0, 60, 120), 9, (60, 6, 4, 9), 20, samples=3, sample_bytes=600, groups=2, group_bytes=3
    ),
    "more_weights_than_codes": tiled((0,), 640, (0, 640, 1, 3), 1000),
    "integers": tiled((0, 70), 21, (70, 7, 5, 8), 32, rounding=replace(ROUND, floats=False)),
    "whole_range": tiled((0,), 96, (0, 96, 1, 49), 32, rounding=replace(ROUND, low=0, high=255)),
    "large_ratios": tiled((0,), 96, (0, 96, 1, 9), 32, rounding=replace(ROUND, fractions=False)),
}


@needs_amx
@pytest.mark.parametrize("name", CASES)
def test_tiles_equal_their_oracle(name: str) -> None:
    kernel = CASES[name]
    arrays = contents(kernel, 64)
    wanted = kernel.oracle(*arrays).reshape(-1)
    np.testing.assert_array_equal(run(kernel, *arrays, target=TARGET)[: wanted.size], wanted)
    assert len(np.unique(wanted)) > 20


@needs_amx
@pytest.mark.parametrize("walk", [(2, 3, 5), (1, 1, 30)])
def test_tiles_are_written_into_a_frame(walk: tuple[int, int, int]) -> None:
    samples, rows, width = walk
    places = width * 24, 24, rows, width
    kernel = tiled((0,), 24, places, 20, samples=samples, sample_bytes=rows * width * 24, y=FRAMED)
    arrays = contents(kernel, 64)
    wanted = framed(kernel, kernel.oracle(*arrays))
    np.testing.assert_array_equal(run(kernel, *arrays, target=TARGET), wanted)


@needs_amx
def test_random_shapes_equal_their_oracles() -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        run_bytes, width, out, rows = (int(v) for v in rng.integers(1, [150, 40, 70, 4]))
        kernel = tiled((0,), run_bytes, (width * run_bytes, run_bytes, rows, width), out)
        arrays = contents(kernel, 127)
        wanted = kernel.oracle(*arrays).reshape(-1)
        np.testing.assert_array_equal(run(kernel, *arrays, target=TARGET), wanted)


@needs_amx
def test_the_largest_sums_saturate() -> None:
    kernel = tiled((0,), 4096, (0, 4096, 1, 4), 32, rounding=replace(ROUND, low=0, high=255))
    weight, bias, ratio, x = contents(kernel, 1)
    weight[:] = np.where(np.arange(weight.size) // 64 % 2, 127, -128)
    arrays = [weight, bias, np.full_like(ratio, 0.99), np.full_like(x, 255)]
    wanted = kernel.oracle(*arrays).reshape(-1)
    np.testing.assert_array_equal(run(kernel, *arrays, target=TARGET), wanted)
    assert set(np.unique(wanted)) == {0, 255}


@needs_amx
@pytest.mark.parametrize("levels", [4, 8, 16])
def test_codes_of_a_palette_are_decoded(levels: int) -> None:
    kernel = tiled((0, 320), 160, (320, 16, 3, 11), 40)
    rng = np.random.default_rng(0)
    rows = rng.integers(-levels // 2, levels // 2, (40, 2, 160)).astype(np.int8)
    found = find_palette(pack(rows, kernel), kernel.how)
    assert found is not None
    coded = replace(kernel, bits=found.bits)
    _, *others = contents(kernel, 1)
    wanted = kernel.oracle(pack(rows, kernel).reshape(-1), *others).reshape(-1)
    got = run(coded, found.codes.reshape(-1), found.tables.reshape(-1), *others, target=TARGET)
    np.testing.assert_array_equal(got, wanted)


def test_a_product_of_tiles_is_in_the_machine_code() -> None:
    compiled = compile_for_host(
        alone(CASES["rows_of_a_window"]), Description.parse(TARGET).resolved().target()
    )
    text = compiled.mod.inspect_source("asm")
    assert text.count("tdpbusd") >= 3 * 4
    assert "ldtilecfg" in text
