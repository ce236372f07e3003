"""The threads of a module: every chunk once, and a slow helper is not waited for every time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[2] / "ptq" / "targets" / "tvm" / "native"
PROMISES = (
    "alone", "once", "helped", "woken", "forked", "alone_if_faster", "together_if_faster",
    "backs_off", "stays_alone", "comes_back",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Promise -> whether it was kept, by a C program."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    program = tmp_path_factory.mktemp("parallel") / "test"
    sources = [str(HERE / "parallel_test.c"), str(NATIVE / "parallel.c")]
    flags = [
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-I",
        str(NATIVE),
    ]
    subprocess.run(["gcc", *flags, *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=True)
    return {name: value == "1" for name, value in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(kept: dict[str, bool], promise: str) -> None:
    assert kept[promise]
