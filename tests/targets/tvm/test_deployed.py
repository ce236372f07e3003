"""A module needs little where it runs: numpy for Python, libc for C++."""

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


@pytest.mark.slow
def test_an_environment_with_numpy_alone_runs_it(deployed: Deployed, tmp_path: Path) -> None:
    """ptq itself is installed without its dependencies: ptq.runtime imports none of them."""
    path, x, wanted = deployed
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    install = [str(python), "-m", "pip", "install", "--quiet", *constraints]
    subprocess.run([*install, "numpy", "setuptools"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", str(ROOT)], check=True)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, ptq.runtime\n"
        "np.save(sys.argv[3], ptq.runtime.load(sys.argv[1])(np.load(sys.argv[2])))\n"
    )
    words = [str(python), "-I", "-c", code, str(path), "x.npy", "y.npy"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, cwd=tmp_path, env=alone, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)
