"""NVIDIA's compiler: CUDA text to one file for several GPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ptq.targets.tvm.linking import run
from ptq.targets.tvm.tools import require_nvcc

FLAGS = ("-std=c++17", "-O3", "--fmad=false", "--fatbin")
"""A fused multiply-add rounds once where the contract rounds twice."""


def compile_cuda(text: str, architectures: Sequence[str]) -> bytes:
    """Machine code for every architecture, such as sm_80, and PTX of the last for later ones.

    Raises:
        MissingDependencyError: nvcc is not installed. PtqError: it fails.
    """
    nvcc = require_nvcc()
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        (Path(folder) / "kernels.cu").write_text(text)
        # Relative names: what is made must not depend on where.
        command = [nvcc, *FLAGS, *_machines(architectures), "-o", "kernels.fatbin", "kernels.cu"]
        run(command, f"compile for {', '.join(architectures)}", Path(folder))
        return (Path(folder) / "kernels.fatbin").read_bytes()


def _machines(architectures: Sequence[str]) -> list[str]:
    words = []
    for name in architectures:
        virtual = name.replace("sm_", "compute_")
        code = f"[{name},{virtual}]" if name == architectures[-1] else name
        words += ["-gencode", f"arch={virtual},code={code}"]
    return words
