"""Fast kernels equal their oracles; those of processors that this machine lacks only compile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.depthwise import Depthwise
from ptq.kernels.dot import ISAS, safe_quads
from ptq.kernels.elementwise import Lookup, Multiply
from ptq.kernels.functions import compile_for_host
from ptq.kernels.movement import Copy
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import pack, whole_pairs
from ptq.kernels.reduction import Mean
from ptq.kernels.requantize import Rounding
from ptq.kernels.view import View
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.features import features_of
from tests.kernels.run_kernel import alone, run, scales_of

ROUND = Rounding(118, 3, 250, floats=True)
NATIVE = features_of(Description("llvm", cpu="native").resolved().target())
needs_vnni = pytest.mark.skipif("avx512vnni" not in NATIVE, reason="this processor has no VNNI")
needs_avx2 = pytest.mark.skipif("avx2" not in NATIVE, reason="this processor has no AVX2")

PACKED = {
    "rows_of_a_window": PackedConvolution(
        "avx2", Tile(4, 2, 4), (0, 70, 140), 21, 70, 7, 5, 8, 32, ROUND
    ),
    "last_tile_overlaps": PackedConvolution(
        "avx2", Tile(4, 2, 2), (0, 70), 14, 140, 14, 3, 7, 16, ROUND
    ),
    "surplus_vector": PackedConvolution("avx2", Tile(4, 2, 1), (0,), 24, 0, 24, 1, 9, 24, ROUND),
    "surplus_channels": PackedConvolution("avx2", Tile(1, 2, 4), (0,), 30, 0, 30, 1, 3, 10, ROUND),
}


WORDS = PackedConvolution(
    "words", Tile(4, 2, 2), (0,), 32, 0, 32, 1, 5, 19, ROUND, groups=3, group_bytes=160
)


def contents(kernel: Any, reach: int) -> list[np.ndarray]:
    """Weights up to `reach`, biases, scales that use the whole range, and codes."""
    rng = np.random.default_rng(7)
    weight, bias, *_, x, _ = kernel.parameters()
    channels = bias.size
    scales = scales_of(kernel.rounding, channels, rng)
    return [
        rng.integers(-reach, reach + 1, weight.size).astype(weight.dtype),
        rng.integers(-3000, 3000, channels).astype(np.int32),
        *scales,
        rng.integers(0, 256, x.size).astype(np.uint8),
    ]


def ties(kernel: Any) -> list[np.ndarray]:
    """Small sums over 16, of which every sixteenth is half way between two codes."""
    weight, bias, _, shift, x = contents(kernel, 1)
    ones = np.ones(bias.size, np.int32)
    return [weight, bias // 8, ones, 0 * shift + 4, x]


@needs_avx2
def test_halves_are_rounded_to_even_on_int64() -> None:
    kernel = replace(PACKED["rows_of_a_window"], rounding=replace(ROUND, floats=False))
    arrays = ties(kernel)
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(run(kernel, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


@needs_avx2
@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("name", PACKED)
def test_packed_convolution_equals_its_oracle(name: str, floats: bool) -> None:
    kernel = replace(PACKED[name], rounding=replace(ROUND, floats=floats))
    arrays = contents(kernel, 64 // kernel.tile.group)
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(run(kernel, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


@needs_vnni
@pytest.mark.parametrize("fractions", [True, False])
@pytest.mark.parametrize("out", [24, 64, 70])
@pytest.mark.parametrize("tile", [Tile(6, 4, 2), Tile(5, 3, 2), Tile(12, 1, 2), Tile(1, 4, 4)])
def test_vectors_of_512_bits_equal_their_oracle(tile: Tile, out: int, fractions: bool) -> None:
    rounding = replace(ROUND, fractions=fractions, low=0, high=[255, 250][out == 64])
    kernel = PackedConvolution(
        "avx512vnni", tile, (0, 70, 140), 21, 70, 7, 5, 8, out, rounding
    )  # fmt: skip
    arrays = contents(kernel, 64)
    wanted = kernel.oracle(*arrays)
    got = run(kernel, *arrays, target="llvm:cascadelake")
    np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


@needs_avx2
@pytest.mark.parametrize(
    ("narrow", "paired", "reach"), [(True, False, 14), (False, False, 128), (False, True, 128)]
)
@pytest.mark.parametrize("floats", [True, False])
def test_depthwise_equals_its_oracle(narrow: bool, paired: bool, reach: int, floats: bool) -> None:
    rounding = replace(ROUND, floats=floats)
    taps = tuple(256 * i + 32 * j for i in range(3) for j in range(3))
    kernel = Depthwise(taps + taps[-1:] * paired, 512, 32, 3, 6, 32, narrow, paired, rounding)
    arrays = contents(kernel, reach)
    arrays[0] = np.clip(arrays[0], -128, 127)
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(run(kernel, *arrays).reshape(wanted.shape), wanted)


FRAMED = View((2, 3, 5), (1000, 160, 29), 37)
"""Pixels of 10, 16 and 24 codes with room between them, between rows and around the image."""


def framed(kernel: Any, codes: np.ndarray) -> np.ndarray:
    """Codes of all pixels where the kernel's y has them, and zeros elsewhere."""
    flat = np.zeros(kernel.parameters()[-1].size, np.uint8)
    pixels = codes.reshape(*FRAMED.shape, -1)
    for place in np.ndindex(*FRAMED.shape):
        flat[FRAMED.at(place) :][: pixels.shape[-1]] = pixels[place]
    return flat


@needs_avx2
@pytest.mark.parametrize("walk", [(2, 3, 5), (1, 1, 30)])
@pytest.mark.parametrize(("out", "tile"), [(24, Tile(4, 2, 2)), (10, Tile(4, 1, 2))])
def test_packed_convolution_writes_into_a_frame(walk: Any, out: int, tile: Tile) -> None:
    """Row by row, and where all pixels of the batch are walked as one row."""
    samples, rows, width = walk
    kernel = PackedConvolution(
        "avx2", tile, (0,), 24, width * 24, 24, rows, width, out, ROUND,
        samples=samples, sample_bytes=rows * width * 24, y=FRAMED,
    )  # fmt: skip
    arrays = contents(kernel, 16)
    wanted = framed(kernel, kernel.oracle(*arrays))
    np.testing.assert_array_equal(run(kernel, *arrays), wanted)
    assert len(np.unique(wanted)) > 20


@needs_avx2
def test_depthwise_writes_into_a_frame() -> None:
    taps = tuple(160 * i + 16 * j for i in range(3) for j in range(3))
    kernel = Depthwise(taps, 160, 16, 3, 5, 16, False, False, ROUND, 2, 800, FRAMED)
    arrays = contents(kernel, 100)
    wanted = framed(kernel, kernel.oracle(*arrays))
    np.testing.assert_array_equal(run(kernel, *arrays), wanted)
    assert len(np.unique(wanted)) > 20


@needs_avx2
@pytest.mark.parametrize("floats", [True, False])
def test_products_of_words_equal_their_oracle(floats: bool) -> None:
    """Codes and weights of 9 bits and a sign, two bytes each: neither fits in a byte."""
    check_words(replace(WORDS, rounding=replace(ROUND, floats=floats)), "llvm:native")


@needs_vnni
@pytest.mark.parametrize("fractions", [True, False])
def test_products_of_words_by_512_bits_equal_their_oracle(fractions: bool) -> None:
    rounding = replace(ROUND, fractions=fractions)
    kernel = replace(WORDS, isa="words512", tile=Tile(6, 2, 2), rounding=rounding)
    check_words(kernel, "llvm:cascadelake")


def check_words(kernel: PackedConvolution, target: str) -> None:
    """The kernel against its oracle, on words of nine bits."""
    weight, *rest, x = contents(kernel, 1)
    rng = np.random.default_rng(3)
    words = [rng.integers(-255, 256, a.size // 2).astype(np.int16) for a in (weight, x)]
    arrays = [words[0].view(np.int8), *rest, words[1].view(np.uint8)]
    wanted = kernel.oracle(*arrays)
    got = run(kernel, *arrays, target=target)
    np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


@pytest.mark.skipif("vbmi" not in NATIVE, reason="this processor has no AVX512-VBMI")
@pytest.mark.parametrize("size", [64, 100, 640])
def test_permutations_look_up_every_code(size: int) -> None:
    view = View((3, size), (size, 1))
    kernel = Lookup(view, View((3, size), (0, 0)), view, permutes=True)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, 256).astype(np.uint8)
    x = np.resize(rng.permutation(256), 3 * size).astype(np.uint8)
    got = run(kernel, table, x, target="llvm:sapphirerapids")
    np.testing.assert_array_equal(got, table[x])


@pytest.mark.parametrize("channels", [16, 24, 100])
@pytest.mark.parametrize("ratio", [(1, 8), (5, 9), (77, 14), (1, 1)])
def test_products_of_codes_by_vectors_are_those_of_integers(
    channels: int, ratio: tuple[int, int]
) -> None:
    """All pairs of codes, and one row for all rows; halves are among the products."""
    rows = 65536 // channels + 1
    view = View((rows, channels), (channels, 1))
    scale = View((rows, channels), (0, 1))
    rounding = Rounding(118, 3, 250, ratio)
    kernel = Multiply(view, view, view, (7, 200), rounding, lanes=16)
    pairs = np.resize(np.arange(65536), rows * channels)
    a, b = (pairs % 256).astype(np.uint8), (pairs // 256).astype(np.uint8)
    np.testing.assert_array_equal(run(kernel, a, b), kernel.oracle(a, b).reshape(-1))
    one = replace(kernel, b=scale)
    wanted = one.oracle(a, b[:channels]).reshape(-1)
    np.testing.assert_array_equal(run(one, a, b[:channels]), wanted)


@pytest.mark.parametrize("groups", [2, 3, 4, 8, 9])
@pytest.mark.parametrize("channels", [16, 48, 58, 10])
def test_groups_of_channels_are_mixed_by_vectors(groups: int, channels: int) -> None:
    """Nine groups, or ten channels, are copied one by one."""
    pixel = groups * channels
    x = View((7, channels, groups), (pixel, 1, channels))
    y = View((7, channels, groups), (pixel, groups, 1))
    codes = np.random.default_rng(0).integers(0, 256, 7 * pixel).astype(np.uint8)
    got = run(Copy(x, y, mixes=True), codes)
    np.testing.assert_array_equal(got, x.read(codes).reshape(-1))


@pytest.mark.parametrize(("channels", "lanes"), [(64, 64), (100, 64), (40, 32), (16, 16)])
def test_means_of_channels_by_vectors_equal_their_oracle(channels: int, lanes: int) -> None:
    kept, summed = View((2, channels), (35 * channels, 1)), View((35,), (channels,))
    y = View((2, channels), (channels, 1))
    kernel = Mean(kept, summed, y, 99, Rounding(118, 3, 250, (77, 11)), lanes)
    x = np.random.default_rng(0).integers(0, 256, 70 * channels).astype(np.uint8)
    wanted = kernel.oracle(x).reshape(-1)
    np.testing.assert_array_equal(run(kernel, x), wanted)
    assert len(np.unique(wanted)) > 10


@pytest.mark.parametrize(("rows", "channels"), [(5, 100), (1, 200), (3, 64), (2, 129)])
def test_tables_of_many_channels_are_walked_in_parts(rows: int, channels: int) -> None:
    view = View((rows, channels), (channels, 1))
    kernel = Lookup(view, View((rows, channels), (0, 256)), view)
    rng = np.random.default_rng(0)
    table, x = (rng.integers(0, 256, n).astype(np.uint8) for n in (256 * channels, rows * channels))
    wanted = kernel.oracle(table, x).reshape(-1)
    np.testing.assert_array_equal(run(kernel, table, x), wanted)


def test_pack_puts_every_weight_where_the_oracle_finds_it() -> None:
    kernel = PACKED["surplus_channels"]
    rows = np.random.default_rng(1).integers(-8, 8, (10, 1, 30)).astype(np.int8)
    x = np.random.default_rng(2).integers(0, 256, kernel.parameters()[3].size).astype(np.uint8)
    bias, ratio = np.zeros(16, np.int32), np.full(16, 2.0**-7, np.float32)
    found = kernel.oracle(pack(rows, kernel).reshape(-1), bias, ratio, x)
    for place in range(3):
        acc = rows[:, 0].astype(np.int64) @ x[place * 30 : place * 30 + 30]
        codes = np.clip(np.rint(acc * 2.0**-7) + 118, 3, 250)
        np.testing.assert_array_equal(found[0, 0, place, 0], codes)


@pytest.mark.parametrize(
    ("top", "group"), [(8, 4), (16, 4), (17, 2), (32, 2), (33, 1), (64, 1), (65, 0)]
)
def test_sums_of_quads_that_16_bits_hold(top: int, group: int) -> None:
    """255 * 2 * top * quads must stay below 2^15: one more and the group halves."""
    weights = np.full((1, 4, 8, 4), top, np.int8)
    assert safe_quads(weights) == group
    signs = np.tile(np.array([1, -1], np.int8), 2)
    assert safe_quads(weights * signs) >= group


@pytest.mark.parametrize(
    ("isa", "cpu", "tile", "instruction"),
    [
        ("avx512vnni", "x86_64-linux-gnu:sapphirerapids", Tile(6, 2, 2), "vpdpbusd"),
        ("avxvnni", "x86_64-linux-gnu:alderlake", Tile(4, 2, 2), "vpdpbusd"),
        ("dotprod", "aarch64-linux-gnu:generic+dotprod", Tile(6, 4, 1), "sdot"),
    ],
)
def test_kernels_of_other_processors_use_their_instruction(
    isa: str, cpu: str, tile: Tile, instruction: str
) -> None:
    """Only compiled: those of x86 have never run where these tests were written."""
    kernel = replace(PACKED["rows_of_a_window"], isa=isa, tile=tile)
    machine = Description.parse(f"llvm:{cpu}").resolved().target()
    assert isa in features_of(machine)
    made = compile_for_host(alone(kernel), machine)
    assert instruction in made.mod.inspect_source("asm")


@pytest.mark.parametrize(
    ("isa", "cpu"),
    [
        ("avx512vnni", "x86_64-linux-gnu:sapphirerapids"),
        ("avxvnni", "x86_64-linux-gnu:alderlake"),
        ("dotprod", "aarch64-linux-gnu:generic+dotprod"),
    ],
)
def test_depthwise_sums_that_16_bits_do_not_hold_compile_for_others(isa: str, cpu: str) -> None:
    """x86 adds two products at a time; LLVM would abort on its instruction elsewhere."""
    paired = ISAS[isa].pairs_of_words
    taps = tuple(range(0, 320, 32))
    kernel = Depthwise(taps, 512, 32, 3, 6, 32, False, paired, ROUND)
    machine = Description.parse(f"llvm:{cpu}").resolved().target()
    made = compile_for_host(alone(kernel), machine)
    assert ("vpmaddwd" in made.mod.inspect_source("asm")) == (isa != "dotprod")


def test_pairs_of_the_flattened_window_stay_pairs_where_runs_are_odd() -> None:
    """Weights 100 0, 0 100, ... are safe in pairs; a byte off, two of 100 would meet."""
    flat = np.tile(np.int8([100, 0, 0, 100]), 7)[:27]
    rows = np.broadcast_to(flat.reshape(1, 3, 9), (8, 3, 9))
    kernel = PackedConvolution("avx2", Tile(2, 1, 1), (0, 40, 80), 10, 40, 3, 2, 2, 8, ROUND)
    runs, whole = whole_pairs([0, 40, 80], rows)
    assert runs == [0, 39, 80]
    np.testing.assert_array_equal(whole[0, 1], [0, *rows[0, 1]])
    groups = [
        safe_quads(pack(some, kernel)[:, run], most=1) for run in range(3) for some in (rows, whole)
    ]
    assert groups == [1, 1, 0, 1, 1, 1]
    even = rows[:, :, :8]
    assert whole_pairs([0, 40, 80], even) == ([0, 40, 80], even)


@pytest.mark.parametrize("bits", [0, 4])
def test_weights_that_are_read_once_are_fetched_ahead(bits: int) -> None:
    """Several tiles share what is in the cache already."""
    target = Description("llvm", "x86_64-linux-gnu", "cascadelake").target()
    for pixels, wanted in ((4, True), (2, False), (1, False)):
        kernel = PackedConvolution(
            "avx512vnni", Tile(pixels, 2, 4), (0,), 64, 0, 64, 1, 4, 32, ROUND, bits=bits
        )
        text = compile_for_host(alone(kernel), target).mod.inspect_source("asm")
        assert ("prefetcht0" in text) == wanted
