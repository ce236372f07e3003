"""The CUDA text of every kernel gives what its oracle gives, on this CPU; nvcc takes it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.packing import in_order
from ptq.kernels.palette import find_palette
from ptq.kernels.requantize import Rounding
from ptq.kernels.tensor_convolution import TensorConvolution, WarpTile, pack_fragments, pack_palette
from ptq.targets.tvm.nvcc import FLAGS, compile_cuda
from ptq.targets.tvm.tools import require_nvcc
from tests.cuda_shim.shim import Shimmed, needs_gpp, needs_nvcc, text_of
from tests.kernels.test_fast_kernels import contents, ties
from tests.kernels.test_generic_kernels import KERNELS, arguments
from tests.kernels.test_palette import weights

ROUND = Rounding(118, 3, 250)
DP4A: dict[str, Any] = {
    "rows_of_a_window": PackedConvolution(
        "dp4a", Tile(4, 2, 2), (0, 80, 160), 24, 80, 8, 5, 9, 32, ROUND
    ),
    "surplus_channels": PackedConvolution("dp4a", Tile(4, 4, 1), (0,), 12, 0, 12, 1, 9, 11, ROUND),
    "one_row": PackedConvolution("dp4a", Tile(1, 1, 4), (0,), 64, 0, 64, 1, 1, 300, ROUND),
    "groups_and_samples": PackedConvolution(
        "dp4a", Tile(2, 2, 1), (0, 12, 60, 72), 4, 60, 12, 3, 4, 5, ROUND,
        samples=2, sample_bytes=240, groups=3, group_bytes=4,
    ),
    "strided": PackedConvolution("dp4a", Tile(4, 1, 1), (0, 8, 96), 8, 192, 16, 2, 9, 7, ROUND),
}  # fmt: skip
TENSOR: dict[str, Any] = {
    "tensor_window": TensorConvolution(WarpTile(1, 2), (0, 80, 160), 24, 80, 8, 5, 9, 16, ROUND),
    "tensor_gemm": TensorConvolution(WarpTile(2, 4), (0,), 68, 0, 68, 1, 37, 35, ROUND),
    "tensor_to_16_bits": TensorConvolution(
        WarpTile(1, 1), (0,), 32, 0, 32, 1, 16, 8, Rounding(30000, 0, 65535)
    ),
    "tensor_samples": TensorConvolution(
        WarpTile(2, 1), (0, 64), 32, 64, 64, 2, 3, 5, ROUND, samples=3, sample_bytes=256
    ),
}
TENSOR_PALETTES = {
    f"tensor_palette_of_{bits}_bits": TensorConvolution(
        WarpTile(1, 2), (0, 80), 40, 80, 8, 5, 5, 13, ROUND, bits=bits
    )
    for bits in (2, 4)
}
PALETTES = {
    f"palette_of_{bits}_bits": PackedConvolution(
        "dp4a", Tile(2, 2, 4), (0, 36, 72), 32, 144, 8, 2, 3, 4, ROUND, bits
    )
    for bits in (2, 3, 4)
}
ALL = {**KERNELS, **DP4A, **TENSOR, **PALETTES, **TENSOR_PALETTES}


@pytest.fixture(scope="module")
def shimmed(tmp_path_factory: pytest.TempPathFactory) -> Shimmed:
    return Shimmed(ALL, tmp_path_factory.mktemp("shim"))


@needs_gpp
@pytest.mark.parametrize("name", KERNELS)
def test_generic_kernel_equals_its_oracle(name: str, shimmed: Shimmed) -> None:
    kernel = KERNELS[name]
    arrays = arguments(kernel, np.random.default_rng(5))
    wanted = kernel.oracle(*arrays)
    found = shimmed.run(name, *arrays)
    view = getattr(kernel, "y", None)
    found = found.reshape(wanted.shape) if view is None else view.read(found)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 1 or name == "fill"


@needs_gpp
@pytest.mark.parametrize("name", [*DP4A, *TENSOR])
def test_gpu_kernel_equals_its_oracle(name: str, shimmed: Shimmed) -> None:
    kernel = ALL[name]
    arrays = contents(kernel, 127)
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(shimmed.run(name, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 15


@needs_gpp
@pytest.mark.parametrize("name", ["rows_of_a_window", "tensor_gemm"])
def test_halves_are_rounded_to_even(name: str, shimmed: Shimmed) -> None:
    arrays = ties(ALL[name])
    wanted = ALL[name].oracle(*arrays)
    np.testing.assert_array_equal(shimmed.run(name, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


def test_fragments_are_packed_as_the_oracle_reads_them() -> None:
    kernel = TENSOR["tensor_gemm"]
    rng = np.random.default_rng(1)
    rows = rng.integers(-9, 10, (35, 1, 68)).astype(np.int8)
    x = rng.integers(0, 256, kernel.parameters()[-2].size).astype(np.uint8)
    room = kernel.parameters()[1].size
    bias, multiplier, shift = (np.full(room, n, np.int32) for n in (0, 1, 7))
    found = kernel.oracle(pack_fragments(rows, kernel).reshape(-1), bias, multiplier, shift, x)
    acc = x[: 37 * 68].reshape(37, 68).astype(np.int64) @ rows[:, 0].T
    np.testing.assert_array_equal(found[0, 0, :, 0], ROUND.oracle(acc, 1, 7))


@needs_gpp
@pytest.mark.parametrize("name", PALETTES)
def test_weights_of_few_bits_are_decoded_in_the_loop(name: str, shimmed: Shimmed) -> None:
    kernel = PALETTES[name]
    packed = weights("dp4a", kernel.bits)
    found: Any = find_palette(packed, kernel.how)
    assert found.bits == kernel.bits
    _, bias, multiplier, shift, x = contents(replace(kernel, bits=0), 127)
    arrays = [in_order(found.codes, kernel.how), found.tables, bias, multiplier, shift + 6, x]
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(shimmed.run(name, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 10


@needs_gpp
@pytest.mark.parametrize("name", TENSOR_PALETTES)
def test_weights_of_few_bits_go_to_tensor_cores(name: str, shimmed: Shimmed) -> None:
    """Four values are 2 bits, five already 4."""
    kernel = TENSOR_PALETTES[name]
    values = np.array([-100, 0, 7, 120] if kernel.bits == 2 else [-100, 0, 7, 99, 120], np.int8)
    rng = np.random.default_rng(4)
    rows = rng.choice(values, (13, 2, 40))
    rows[:, 0, : len(values)] = values
    fragments = pack_fragments(rows, kernel)
    found: Any = pack_palette(fragments)
    assert found.bits == kernel.bits
    _, *rest = contents(replace(kernel, bits=0), 127)
    arrays = [found.codes.reshape(-1), found.tables.reshape(-1), *rest]
    wanted = replace(kernel, bits=0).oracle(fragments.reshape(-1), *rest)
    np.testing.assert_array_equal(kernel.oracle(*arrays), wanted)
    np.testing.assert_array_equal(shimmed.run(name, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 15


@needs_nvcc
def test_nvcc_compiles_every_kernel_for_both_architectures(tmp_path: Path) -> None:
    made = text_of(ALL)
    image = compile_cuda(made.text, ("sm_80", "sm_90"))
    (tmp_path / "kernels.fatbin").write_bytes(image)
    assert len(image) > 1000 * len(ALL)


@pytest.mark.slow
@needs_nvcc
def test_ptx_has_the_instructions_and_no_product_that_is_not_rounded(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(text_of(ALL).text)
    flags = [flag for flag in FLAGS if flag != "--fatbin"]
    command = [require_nvcc(), *flags, "--ptx", "-arch=sm_80", "-o", "k.ptx", "k.cu"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    ptx = (tmp_path / "k.ptx").read_text()
    for instruction in ("mma.sync.aligned.m16n8k32", "dp4a.u32.s32", "prmt.b32"):
        assert instruction in ptx
    assert "fma.rn.f" not in ptx
