"""Compile one kernel alone and run it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm_ffi
from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ptq.cpus import allow_tiles
from ptq.kernels.functions import compile_for_host, prim_func
from ptq.kernels.kernel import Kernel
from ptq.kernels.requantize import Rounding
from ptq.targets.tvm.description import Description

Array = npt.NDArray[Any]


def alone(kernel: Kernel) -> IRModule:
    """The kernel and an entry function that calls it on whole buffers."""
    kernel_var = GlobalVar("kernel")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        buffers = [T.arg(p.name, T.buffer((max(p.size, 1),), p.dtype)) for p in kernel.parameters()]
        T.evaluate(kernel_var(*(tirx.address_of(buffer[0]) for buffer in buffers)))
    return IRModule({kernel_var: prim_func(kernel, "kernel"), GlobalVar("main"): builder.get()})


def run(kernel: Kernel, *arrays: Array, target: str = "llvm:native") -> Array:
    """The last buffer after the call, from all the others; zeros where nothing is written."""
    machine = Description.parse(target).resolved().target()
    executable = compile_for_host(alone(kernel), machine)
    allow_tiles()
    last = kernel.parameters()[-1]
    written = np.zeros(max(last.size, 1), last.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        executable.export_library(str(path))
        module = tvm_ffi.load_module(str(path))
        flat = [_aligned(np.ascontiguousarray(a).reshape(-1)) for a in (*arrays, written)]
        module["main"](*(tvm_ffi.from_dlpack(a) for a in flat))
        return flat[-1]


def scales_of(rounding: Rounding, channels: int, rng: np.random.Generator) -> list[Array]:
    """Scales of channels that use the whole range of codes."""
    multiplier = rng.integers(1, 64, channels)
    if rounding.floats:
        return [(multiplier * np.float32(2.0**-13)).astype(np.float32)]
    # More bits than a float32 product has.
    multiplier = multiplier * 2**18 + rng.integers(1, 2**18, channels)
    return [multiplier.astype(np.int32), np.full(channels, 31, np.int32)]


def _aligned(array: Array) -> Array:
    """A copy at an address of 64 bytes, with room behind, as the arena has it."""
    room = np.zeros(array.nbytes + 192, np.uint8)
    start = -room.ctypes.data % 64
    made = room[start : start + array.nbytes].view(array.dtype)
    made[:] = array
    return made
