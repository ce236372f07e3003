"""Kernels as functions: private ones for direct calls on a CPU, and ones that a GPU launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ptq.kernels.binding import BLOCK_THREADS, Grid, Loops
from ptq.kernels.kernel import Buffer, Kernel

DEVICE_LAUNCH = 2
"""TVM's calling convention of a function that a host launches."""


def prim_func(kernel: Kernel, name: str) -> Any:
    """The kernel as a private function of pointers, for direct calls within one module.

    It returns an int32, because the call that starts parallel loops passes an error code on.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        T.func_ret(tvm.ir.PrimType("int32"))
        pointers = _pointers(kernel)
        # The body becomes a function that is never inlined. That matters: buffers of different
        # kernels share memory, but TVM tells LLVM that those of one function never do.
        with T.attr({"compute_scope": f"{name}_body"}):
            kernel.emit(Loops(), *_buffers(kernel, pointers))
        T.Return(T.int32(0))
    return builder.get()


def compile_for_host(functions: Any, target: Any) -> Any:
    """Machine code of kernels and of what calls them.

    Without TVM's storage rewriting, which forgets what is meant to be on the stack.
    """
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        return tvm.compile(functions, target=tvm.target.Target(target, host=target))


@dataclass(frozen=True)
class DeviceFunction:
    """A kernel as a function of pointers that a host launches, not lowered yet, and its grid."""

    function: Any
    blocks: int
    threads: int


def device_func(kernel: Kernel, name: str, target: Any) -> DeviceFunction:
    """The kernel for a GPU."""
    grid = Grid(all_digits=str(target.kind.name) == "cuda")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(
            {
                "tirx.noalias": True,
                "global_symbol": name,
                "calling_conv": DEVICE_LAUNCH,
                "tirx.is_global_func": True,
                "target": target,
            }
        )
        kernel.emit(grid, *_buffers(kernel, _pointers(kernel)))
    return DeviceFunction(builder.get(), grid.blocks, BLOCK_THREADS)


def _pointers(kernel: Kernel) -> list[Any]:
    return [T.arg(p.name, T.handle(p.dtype)) for p in kernel.parameters()]


def _buffers(kernel: Kernel, pointers: list[Any]) -> list[Buffer]:
    return [
        T.decl_buffer((p.size,), p.dtype, data=pointer)
        for p, pointer in zip(kernel.parameters(), pointers, strict=True)
    ]
