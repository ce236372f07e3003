"""Same inputs, same seed: same bytes, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conv_net import conv_net, conv_samples

ROOT = Path(__file__).parents[1]


def quantised(folder: Path, threads: int) -> dict[str, bytes]:
    """The files of a run in a process of its own with so many threads, by name."""
    out = folder / str(threads)
    out.mkdir()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    arguments = ["quantize", "model.onnx", "-o", str(out / "model.onnx"), "--calib", "samples.npz"]
    arguments += ["--precision", "w3a4", "--effort", "default", "--no-measure", "--quiet"]
    command = [sys.executable, "-c", "from ptq.cli import main; main()", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_one_and_two_threads_write_the_same_bytes(tmp_path: Path) -> None:
    onnx.save(conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", x=conv_samples(48))
    one, two = (quantised(tmp_path, threads) for threads in (1, 2))
    assert one == two
