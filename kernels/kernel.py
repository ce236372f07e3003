"""What a kernel is: one loop nest over flat buffers, its shape fixed, beside its numpy oracle.

A kernel is a frozen dataclass; equal ones are compiled once. Its last parameter is the one that
it writes. Buffers are flat; a kernel knows the strides of its operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Array = npt.NDArray[Any]
Expr = Any  # a TIR expression
Buffer = Any  # a TIR buffer


@dataclass(frozen=True)
class Parameter:
    """A flat buffer of `size` elements."""

    name: str
    dtype: str
    size: int


class Kernel(Protocol):
    """One loop nest."""

    def parameters(self) -> tuple[Parameter, ...]:
        """The buffers, in the order of the call; the last is written, the others are read."""
        ...

    def emit(self, *buffers: Any, **unused: Any) -> None:
        """Build the loops; called inside a PrimFunc."""
        ...

    def oracle(self, *arrays: Any, **unused: Any) -> Array:
        """What the last buffer holds afterwards, from all the others, in numpy."""
        ...


def prim_func(kernel: Kernel, name: str) -> Any:
    """The kernel as a private function of pointers, for direct calls within one module.

    It returns an int32, because the call that starts parallel loops passes an error code on.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        T.func_ret(tvm.ir.PrimType("int32"))
        pointers = [(p, T.arg(p.name, T.handle(p.dtype))) for p in kernel.parameters()]
        # The body becomes a function that is never inlined. That matters: buffers of different
        # kernels share memory, but TVM tells LLVM that those of one function never do.
        with T.attr({"compute_scope": f"{name}_body"}):
            kernel.emit(
                *(T.decl_buffer((p.size,), p.dtype, data=pointer) for p, pointer in pointers)
            )
        T.Return(T.int32(0))
    return builder.get()


def local(dtype: str, size: int = 1) -> Buffer:
    """Variables on the stack, which LLVM keeps in registers where it can.

    Without the annotation a private function would ask the runtime for this memory.
    """
    on_stack = {"disable_lower_builtin": True}
    return T.alloc_buffer((size,), dtype, scope="global", annotations=on_stack)


def exact_float(value: float) -> Expr:
    """A float32 constant; call it before any loop.

    Through its bits in memory where TVM's C code, which prints seven digits, would change it.
    """
    number = np.float32(value)
    if np.float32(f"{number:.6e}") == number:
        return T.float32(float(number))
    bits = local("int32")
    T.buffer_store(bits, T.int32(int(number.view(np.int32))), [0])
    return T.reinterpret("float32", bits[0])


def title(kernel: Kernel) -> str:
    """A C name for the kernel's function: its class in small letters."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(kernel).__name__).strip("_")


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
