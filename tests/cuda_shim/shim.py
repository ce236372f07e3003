"""Run the CUDA that is generated, and the modules that hold it, without a GPU.

`nvcc` here makes a library for this CPU of CUDA text; `libcuda.c` is a driver that runs it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from ptq.kernels.kernel import Kernel
from ptq.runtime import INCLUDE
from ptq.targets.tvm.device_text import DeviceText, device_text

HERE = Path(__file__).parent
ROOM = 64  # bytes behind every buffer, as the arena has it
TARGET = {"kind": "cuda", "arch": "sm_80"}
Array = npt.NDArray[Any]

needs_nvcc = pytest.mark.skipif(
    shutil.which(os.environ.get("NVCC", "nvcc")) is None, reason="nvcc is not installed"
)
needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def text_of(kernels: Mapping[str, Kernel]) -> DeviceText:
    """CUDA text of the kernels by their names."""
    return device_text(kernels, tvm.target.Target(TARGET))


class Shimmed:
    """Kernels compiled for this CPU from their CUDA text."""

    def __init__(self, kernels: Mapping[str, Kernel], folder: Path) -> None:
        self.kernels = dict(kernels)
        made = text_of(kernels)
        self.grids = made.grids
        (folder / "kernels.cu").write_text(made.text)
        library = folder / "kernels.so"
        words = [str(HERE / "nvcc"), str(folder / "kernels.cu"), "-o", str(library)]
        subprocess.run([sys.executable, *words], check=True)
        self.library = ctypes.CDLL(str(library))

    def run(self, name: str, *arrays: Array) -> Array:
        """The last buffer after the launch, from all the others; zeros where nothing is written."""
        last = self.kernels[name].parameters()[-1]
        written = np.zeros(max(last.size, 1), last.dtype)
        rooms = [_with_room(np.ascontiguousarray(a).reshape(-1)) for a in (*arrays, written)]
        pointers = [ctypes.c_void_p(room.ctypes.data) for room in rooms]
        addresses = (ctypes.c_void_p * len(pointers))(
            *(ctypes.addressof(pointer) for pointer in pointers)
        )
        getattr(self.library, f"launch_{name}")(*self.grids[name], addresses)
        return rooms[-1][: written.size]


def _with_room(array: Array) -> Array:
    """A copy at an address of 256 bytes."""
    room = np.zeros(array.nbytes + 256 + ROOM, np.uint8)
    start = -room.ctypes.data % 256
    made = room[start : start + array.nbytes].view(array.dtype)
    made[:] = array
    return made


def build_driver(folder: Path) -> Path:
    """The stand-in for libcuda.so.1, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    out = folder / "libcuda.so.1"
    words = [str(HERE / "libcuda.c"), "-I", str(INCLUDE), "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(["gcc", *flags, *words, "-o", str(out)], check=True)
    return folder


def run_python(
    arguments: Sequence[object], driver: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A fresh process, because a driver that is loaded stays; without one if `driver` is None."""
    environment = {**os.environ, "PATH": f"{HERE}:{os.environ['PATH']}"}
    if driver is not None:
        environment["LD_LIBRARY_PATH"] = str(driver)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
