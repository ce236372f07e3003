"""Weights of few values a channel as codes and tables: decoded they are what they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.dot import ISAS
from ptq.kernels.functions import compile_for_host
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import in_order
from ptq.kernels.palette import Decode, Palette, find_palette
from ptq.kernels.requantize import Rounding
from ptq.targets.tvm.description import Description
from tests.kernels.run_kernel import alone, run
from tests.kernels.test_fast_kernels import needs_avx2

MACHINES = {
    "avx2": "llvm:x86_64-linux-gnu:x86-64-v3",
    "avxvnni": "llvm:x86_64-linux-gnu:alderlake",
    "avx512vnni": "llvm:x86_64-linux-gnu:sapphirerapids",
    "dotprod": "llvm:aarch64-linux-gnu:generic+dotprod",
}
INSTRUCTIONS = {"avx2": "vpshufb", "avxvnni": "vpshufb", "avx512vnni": "vpshufb", "dotprod": "tbl"}


def weights(isa: str, bits: int, seed: int = 0) -> np.ndarray:
    """Every channel has its own 2^bits values; [2 blocks, 3 runs, 8 quads, 2 vectors, lanes, 4]."""
    rng = np.random.default_rng(seed)
    lanes = ISAS[isa].lanes
    tables = np.stack([rng.choice(256, 1 << bits, False) for _ in range(4 * lanes)]) - 128
    codes = rng.integers(0, 1 << bits, (2, 3, 8, 2, lanes, 4))
    codes.reshape(2, -1, 2, lanes, 4)[:, :4, :, :, :] = np.arange(16).reshape(4, 1, 1, 4) % (
        1 << bits
    )
    by_channel = tables.reshape(2, 1, 1, 2, lanes, 1, -1)
    chosen = np.take_along_axis(by_channel, codes[..., None], -1)[..., 0]
    return chosen.astype(np.int8)


def kernel_of(found: Palette, isa: str) -> Decode:
    blocks, units, vectors = found.codes.shape[:3]
    return Decode(isa, found.bits, blocks, units, vectors)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("isa", [*MACHINES, "dp4a"])
def test_oracle_gives_the_weights_back(isa: str, bits: int) -> None:
    packed = weights(isa, bits)
    found = find_palette(packed, ISAS[isa])
    assert found is not None
    assert found.bits == bits
    assert found.codes.nbytes * 8 == packed.size * bits
    decoded = kernel_of(found, isa).oracle(in_order(found.codes, ISAS[isa]), found.tables)
    np.testing.assert_array_equal(decoded, in_order(packed, ISAS[isa]))


@needs_avx2
@pytest.mark.parametrize(("pixels", "group"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 8), (3, 4)])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_product_that_decodes_equals_its_oracle(
    bits: int, once: bool, pixels: int, group: int
) -> None:
    """In its loop, or a block at once; 16 bits add as many quads as weights allow."""
    rows, width = (1, pixels) if once else (2, 3)
    kernel = PackedConvolution(
        "avx2", Tile(pixels, 2, group), (0, 32, 70), 32, 140, 7, rows, width, 32,
        Rounding(118, 3, 250, floats=True), bits,
    )  # fmt: skip
    packed = weights("avx2", bits) // (4 * group)
    found: Any = find_palette(packed, ISAS["avx2"])
    kernel = replace(kernel, bits=found.bits)
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, kernel.parameters()[4].size).astype(np.uint8)
    bias, ratio = rng.integers(-3000, 3000, 32), np.full(32, 2.0**-9)
    arrays = found.codes, found.tables, bias.astype(np.int32), ratio.astype(np.float32), x
    wanted = kernel.oracle(*arrays)
    assert kernel.in_panels != once
    np.testing.assert_array_equal(run(kernel, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > (15 if once else 20)


def test_a_channel_of_17_values_has_no_palette() -> None:
    packed = weights("avx2", 4)
    assert find_palette(packed, ISAS["avx2"]) is not None
    values = np.unique(packed[0, :, :, 0, 0])
    packed[0, 0, 0, 0, 0, 0] = next(v for v in range(-128, 128) if v not in values)
    # One value of the channel may have gone; all 16 are there many times.
    assert find_palette(packed, ISAS["avx2"]) is None


def test_runs_of_broken_units_have_no_palette() -> None:
    assert find_palette(weights("avx2", 4)[:, :, :6], ISAS["avx2"]) is None


@pytest.mark.parametrize("isa", MACHINES)
def test_decode_compiles_to_byte_shuffles(isa: str) -> None:
    machine = Description.parse(MACHINES[isa]).resolved().target()
    for pixels in (1, 3):
        kernel = PackedConvolution(
            isa,
            Tile(pixels, 2, 4),
            (0,),
            96,
            0,
            96,
            1,
            4,
            4 * ISAS[isa].lanes,
            Rounding(0, 0, 255),
            4,
        )
        made = compile_for_host(alone(kernel), machine)
        assert INSTRUCTIONS[isa] in made.mod.inspect_source("asm")
