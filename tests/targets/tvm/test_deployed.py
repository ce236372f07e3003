"""A module needs little where it runs: Python's standard library, or libc for C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq import runtime
from ptq.targets.tvm.module import CompileOptions, compile_program
from tests.execute.small_programs import random_program

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "run_module.cpp"
Deployed = tuple[Path, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A module, samples of its only input, and what its first output has to be."""
    result, feeds = random_program(0, residual_bits=8)
    path = tmp_path_factory.mktemp("deployed") / "model.so"
    compile_program(result.program, CompileOptions()).export(path)
    module = runtime.load(path)
    (port,) = module.inputs
    return path, feeds[port.name], next(iter(module.run(feeds).values()))


def test_cpp_example_gives_the_same_values(deployed: Deployed, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    path, x, wanted = deployed
    x.astype(np.float32).tofile(tmp_path / "x.f32")
    program = tmp_path / "run_module"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-I", str(runtime.INCLUDE)]
    subprocess.run(["g++", *flags, str(EXAMPLE), "-ldl", "-o", str(program)], check=True)
    words = [str(program), str(path), str(tmp_path / "x.f32"), str(tmp_path / "y.f32")]
    subprocess.run(words, check=True, timeout=60)
    found = np.fromfile(tmp_path / "y.f32", np.float32).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)


WITHOUT_NUMPY = """
import array, json, sys, ptq.runtime
from ptq.errors import CalibrationError

module, shape = ptq.runtime.load(sys.argv[1]), json.loads(sys.argv[2])
numbers = array.array("f")
with open("x.f32", "rb") as file:
    numbers.frombytes(file.read())
y = module(memoryview(numbers).cast("B").cast("f", shape))
with open("y.f32", "wb") as file:
    file.write(y)
try:
    module(memoryview(array.array("d", numbers)).cast("B").cast("d", shape))
except CalibrationError as error:
    print(error)
print(y.shape, sorted({"numpy"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_a_bare_environment_runs_it(deployed: Deployed, tmp_path: Path) -> None:
    """ptq is installed without its dependencies: ptq.runtime imports none, numpy neither."""
    path, x, wanted = deployed
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    install = [str(python), "-m", "pip", "install", "--quiet", *constraints]
    subprocess.run([*install, "setuptools"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", str(ROOT)], check=True)
    x.astype(np.float32).tofile(tmp_path / "x.f32")
    words = [str(python), "-I", "-c", WITHOUT_NUMPY, str(path), str(list(x.shape))]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, check=True, cwd=tmp_path, env=alone, timeout=60, text=True, capture_output=True
    )
    found = np.fromfile(tmp_path / "y.f32", np.float32).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    assert "is float64; wanted a dense array of float32 in memory" in done.stdout
    assert done.stdout.endswith(f"{wanted.shape} []\n")
