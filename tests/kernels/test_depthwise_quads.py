"""Depthwise convolution by four rows at a time equals its oracle, and the oracle a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.depthwise_quads import DepthwiseQuads
from ptq.kernels.dot import ISAS
from ptq.kernels.functions import compile_for_host
from ptq.kernels.quad_window import Tile, Window
from ptq.kernels.requantize import Rounding
from ptq.kernels.view import View
from ptq.targets.tvm.description import Description
from tests.kernels.run_kernel import alone, run, scales_of
from tests.kernels.test_fast_kernels import NATIVE

ROUND = Rounding(118, 3, 250, floats=True, fractions=True)
TARGETS = {
    "avx512vnni": "llvm:cascadelake",
    "avxvnni": "llvm:alderlake",
    "dotprod": "llvm:aarch64-linux-gnu:generic+dotprod",
}
CHANNELS = {"avx512vnni": (16, 30, 32, 50, 64, 80, 100, 128), "avxvnni": (16, 20, 32, 40, 64)}
Array = np.ndarray


def random_kernel(isa: str, seed: int) -> DepthwiseQuads:
    """Any window, tile and number of channels; pixels are apart in the image and in the output."""
    rng = np.random.default_rng(seed)
    taps, dilations, strides = (
        tuple(int(n) for n in rng.integers(1, most, 2)) for most in (7, 4, 4)
    )
    window = Window(taps, dilations, strides)  # type: ignore[arg-type]
    height, width = (int(n) for n in rng.integers(1, 10, 2))
    columns = int(rng.integers(1, width + 1))
    rows, pixels = (
        int(rng.integers(1, min(height, 5) + 1)),
        int(rng.integers(1, min(columns, 4) + 1)),
    )
    channels = int(rng.choice(CHANNELS[isa]))
    return DepthwiseQuads(
        isa, Tile(rows, pixels, columns), window, channels, ROUND,
        apart((2, window.rows(height)[-1] + 1, window.width(width)), channels, rng),
        apart((2, height, width), channels, rng),
    )  # fmt: skip


def apart(shape: tuple[int, int, int], channels: int, rng: np.random.Generator) -> View:
    """Pixels of so many channels with room around them, between them and between rows."""
    offset, between, behind = (int(n) for n in rng.integers(0, 20, 3))
    pixel = channels + between
    row = shape[2] * pixel + behind
    return View(shape, (shape[1] * row, row, pixel), offset)


def contents(kernel: DepthwiseQuads) -> tuple[list[Array], Array]:
    """Whole buffers; and the weights before they are arranged."""
    rng = np.random.default_rng(7)
    channels, order = kernel.channels, kernel.order
    weight = rng.integers(-128, 128, (channels, *kernel.window.taps)).astype(np.int8)
    bias = rng.integers(-3000, 3000, channels).astype(np.int32)
    scales = scales_of(kernel.rounding, channels, rng)
    x = rng.integers(0, 256, kernel.parameters()[-2].size).astype(np.uint8)
    return [kernel.arranged(weight), bias[order], *(part[order] for part in scales), x], weight


def assert_equal_to_oracle(kernel: DepthwiseQuads) -> None:
    arrays, _ = contents(kernel)
    wanted = kernel.oracle(*arrays)
    found = run(kernel, *arrays, target=TARGETS[kernel.isa])
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(wanted)) > 10


def skip_without(isa: str) -> None:
    if isa not in NATIVE:
        pytest.skip(f"this processor has no {isa}")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("isa", CHANNELS)
def test_equals_its_oracle(isa: str, seed: int) -> None:
    skip_without(isa)
    assert_equal_to_oracle(random_kernel(isa, seed))


@pytest.mark.parametrize(
    "rounding",
    [
        replace(ROUND, low=0, high=255),
        replace(ROUND, fractions=False),
        replace(ROUND, floats=False),
        Rounding(1180, 3, 60000, floats=True, fractions=True),
    ],
)
@pytest.mark.parametrize("isa", CHANNELS)
def test_every_rounding_equals_its_oracle(isa: str, rounding: Rounding) -> None:
    """By packs without limits; clamped in floats; on int64; to codes of 16 bits."""
    skip_without(isa)
    assert_equal_to_oracle(replace(random_kernel(isa, 3), rounding=rounding))


def test_a_scaled_sum_beyond_int32_saturates() -> None:
    """Ratios of 2^12 and more: packs would see what the conversion makes of too large a float."""
    skip_without("avx512vnni")
    kernel = replace(random_kernel("avx512vnni", 1), rounding=replace(ROUND, fractions=False))
    (weight, bias, scale, x), _ = contents(kernel)
    arrays = [weight, bias, scale * np.float32(2.0**25), x]
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(run(kernel, *arrays, target="llvm:cascadelake"), wanted)
    assert {3, 250} <= set(np.unique(wanted))


@pytest.mark.parametrize("isa", TARGETS)
def test_oracle_is_a_plain_convolution(isa: str) -> None:
    """Whatever the weights were arranged for."""
    window = Window((5, 3), (2, 1), (1, 2))
    image, outputs = (
        View((1, rows, width), (rows * width * 82, width * 82, 82))
        for rows, width in ((12, 9), (4, 4))
    )
    kernel = DepthwiseQuads(isa, Tile(3, 2, 4), window, 82, ROUND, image, outputs)
    (arranged, bias, ratio, x), weight = contents(kernel)
    codes = x.reshape(12, 9, 82).astype(np.int64) - ISAS[isa].offset
    by_channel = {int(c): i for i, c in enumerate(kernel.order)}
    some = [by_channel[c] for c in range(82)]
    wanted = np.zeros((4, 4, 82))
    for row, column in np.ndindex(4, 4):
        seen = codes[row : row + 9 : 2, 2 * column : 2 * column + 3]
        acc = bias[some] + (seen * weight.transpose(1, 2, 0)).sum(axis=(0, 1))
        wanted[row, column] = np.clip(np.rint(acc * ratio[some].astype(float)) + 118, 3, 250)
    np.testing.assert_array_equal(kernel.oracle(arranged, bias, ratio, x), wanted.reshape(-1))


def test_windows_of_two_outputs_share_a_quad() -> None:
    window = Window((3, 3), (1, 1), (1, 1))
    assert window.quads(2) == [(0, 1, 2, 3)]
    assert window.products(2) == {(0, 0): (0, 1, 2, -1), (0, 1): (-1, 0, 1, 2)}


def test_only_rows_that_are_read_are_in_quads() -> None:
    """Twelve rows apart: one quad, whose last row is there twice and counts once."""
    window = Window((3, 3), (12, 12), (1, 1))
    assert window.quads(1) == [(0, 12, 24, 24)]
    assert window.products(1) == {(0, 0): (0, 1, 2, -1)}


@pytest.mark.parametrize("channels", [16, 17, 31, 32, 47, 48, 63, 64, 96, 97, 144, 160, 161])
@pytest.mark.parametrize("isa", TARGETS)
def test_every_channel_is_in_a_block(isa: str, channels: int) -> None:
    dense = View((1, 4, 4), (16 * channels, 4 * channels, channels))
    window = Window((3, 3), (1, 1), (1, 1))
    kernel = DepthwiseQuads(isa, Tile(2, 2, 2), window, channels, ROUND, dense, dense)
    assert set(kernel.order) == set(range(channels))
    assert kernel.order.size < channels + 64


@pytest.mark.parametrize(
    ("isa", "instruction"),
    [("avx512vnni", "vpdpbusd"), ("avxvnni", "vpdpbusd"), ("dotprod", "sdot")],
)
def test_other_processors_use_their_instruction(isa: str, instruction: str) -> None:
    kernel = replace(random_kernel("avxvnni", 2), isa=isa)
    machine = Description.parse(TARGETS[isa]).resolved().target()
    text = compile_for_host(alone(kernel), machine).mod.inspect_source("asm")
    assert instruction in text
