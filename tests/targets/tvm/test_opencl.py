"""Modules for OpenCL: the reference's codes, on whatever device there is (PoCL is a CPU)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.module import CompileOptions, compile_program
from tests.execute.small_programs import random_program
from tests.many_convolutions import many_program, many_samples
from tests.targets.tvm.test_cuda import wide_net
from tests.targets.tvm.test_module import assert_same_codes


def has_opencl() -> bool:
    """True if the system has a platform of OpenCL."""
    count = ctypes.c_uint32()
    try:
        result = ctypes.CDLL("libOpenCL.so.1").clGetPlatformIDs(0, None, ctypes.byref(count))
    except OSError:
        return False
    return result == 0 and count.value > 0


needs_opencl = pytest.mark.skipif(
    not has_opencl(), reason="OpenCL is not installed: apt install pocl-opencl-icd"
)


@needs_opencl
def test_a_random_graph_gives_equal_codes(tmp_path: Path) -> None:
    result, feeds = random_program(0)
    assert_same_codes(result.program, feeds, tmp_path, target="opencl")


@pytest.mark.slow
@needs_opencl
@pytest.mark.parametrize("seed", range(1, 12))
def test_more_random_graphs_give_equal_codes(seed: int, tmp_path: Path) -> None:
    result, feeds = random_program(seed)
    assert_same_codes(result.program, feeds, tmp_path, target="opencl")


@pytest.mark.slow
@needs_opencl
def test_every_kind_of_2d_convolution_has_a_fast_kernel(tmp_path: Path) -> None:
    feeds = {"x": many_samples(3)}
    made = assert_same_codes(many_program(), feeds, tmp_path, target="opencl", batch=3)
    assert not made.plain


@pytest.mark.slow
@needs_opencl
@pytest.mark.parametrize("precision", ["w4a8", "w3a8", "w2a8"])
def test_packed_weights_give_equal_codes(precision: str, tmp_path: Path) -> None:
    recipe = Recipe.preset(precision).replace(effort="fast", edge_bits=int(precision[1]))
    program = quantize(wide_net(), [{"x": many_samples(16)}], recipe).program
    feeds = {"x": many_samples(2)}
    assert_same_codes(program, feeds, tmp_path, target="opencl", weights="packed")


def test_without_a_device_it_is_said_what_is_missing(tmp_path: Path) -> None:
    result, _ = random_program(0, residual_bits=8)
    compile_program(result.program, CompileOptions("opencl")).export(tmp_path / "m.so")
    done = subprocess.run(
        [sys.executable, "-m", "ptq.cli", "inspect", str(tmp_path / "m.so")],
        env={**os.environ, "OCL_ICD_VENDORS": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())  # the console breaks lines
    assert "PackedConvolution" in said
    assert "not timed:" in said
    assert "compiled for opencl: " in said
    assert "OpenCL has no device" in said or "which is not installed" in said
