"""Modules for Arm, run under qemu's user emulation: the reference's values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq import runtime
from ptq.integer.program import Program
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.module import CompileOptions, compile_program
from tests.execute.small_programs import random_program

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "run_module.cpp"
SYSROOT = "/usr/aarch64-linux-gnu"
TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)}; apt install qemu-user g++-aarch64-linux-gnu",
)
TARGETS = (
    "llvm:aarch64-linux-gnu:generic+dotprod",
    "llvm:aarch64-linux-gnu",
    "c:aarch64-linux-gnu",
)


@pytest.fixture(scope="module")
def run_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, for Arm."""
    program = tmp_path_factory.mktemp("arm") / "run_module"
    flags = ["-std=c++17", "-O2", "-I", str(runtime.INCLUDE)]
    words = ["aarch64-linux-gnu-g++", *flags, str(EXAMPLE), "-ldl", "-o", str(program)]
    subprocess.run(words, check=True)
    return program


def run_on_arm(run_module: Path, module: Path, x: np.ndarray) -> np.ndarray:
    """The first output for the first input, flat."""
    folder = module.parent
    x.astype(np.float32).tofile(folder / "x.f32")
    emulator = ["qemu-aarch64", "-cpu", "max", "-L", SYSROOT]
    files = [str(module), str(folder / "x.f32"), str(folder / "y.f32")]
    subprocess.run([*emulator, str(run_module), *files], check=True, timeout=240)
    return np.fromfile(folder / "y.f32", np.float32)


def assert_same_on_arm(
    program: Program, feeds: dict[str, np.ndarray], target: str, run_module: Path, folder: Path
) -> set[str]:
    """Compare the first output with the reference's; returns the kernels that were used."""
    compiled = compile_program(program, CompileOptions(target))
    compiled.export(folder / "model.so")
    (x,) = feeds.values()
    wanted = next(iter(Reference(program).run(feeds).values()))
    found = run_on_arm(run_module, folder / "model.so", x).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    return {kernel for kernels in compiled.kernels.values() for kernel in kernels}


@pytest.mark.parametrize("target", TARGETS)
def test_small_network_gives_the_reference_s_values(
    target: str, run_module: Path, tmp_path: Path
) -> None:
    result, feeds = random_program(0, residual_bits=8)
    assert_same_on_arm(result.program, feeds, target, run_module, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_digits_network_uses_the_fast_kernels(
    precision: str, run_module: Path, tmp_path: Path
) -> None:
    data = ROOT / "calib_data"
    with np.load(data / "digits_eval.npz") as found:
        x = found[next(iter(found))][:8]
    recipe = Recipe.preset(precision).replace(samples=32)
    program = quantize(data / "digits_cnn.onnx", str(data / "digits_calib.npz"), recipe).program
    x = x.astype(np.float32).reshape(-1, 1, 16, 16)
    feeds = {program.inputs[0].name: x}
    used = assert_same_on_arm(program, feeds, TARGETS[0], run_module, tmp_path)
    assert {"PackedConvolution", "DepthwiseQuads"} <= used
