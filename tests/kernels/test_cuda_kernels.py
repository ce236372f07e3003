"""The CUDA text of every kernel gives what its oracle gives, on this CPU; nvcc takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.kernels.requantize import Rounding
from ptq.targets.tvm.nvcc import compile_cuda
from tests.cuda_shim.shim import Shimmed, needs_gpp, needs_nvcc, text_of
from tests.kernels.test_fast_kernels import contents
from tests.kernels.test_generic_kernels import KERNELS, arguments

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
ALL = {**KERNELS, **DP4A}


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
@pytest.mark.parametrize("name", DP4A)
def test_dp4a_kernel_equals_its_oracle(name: str, shimmed: Shimmed) -> None:
    kernel = DP4A[name]
    arrays = contents(kernel, 127)
    wanted = kernel.oracle(*arrays)
    np.testing.assert_array_equal(shimmed.run(name, *arrays).reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 20


@needs_nvcc
def test_nvcc_compiles_every_kernel_for_both_architectures(tmp_path: Path) -> None:
    made = text_of(ALL)
    image = compile_cuda(made.text, ("sm_80", "sm_90"))
    (tmp_path / "kernels.fatbin").write_bytes(image)
    assert len(image) > 1000 * len(ALL)
