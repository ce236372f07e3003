"""The entry function: kernel calls in order, on the arena, for the samples of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ptq.kernels.functions import prim_func
from ptq.kernels.kernel import Kernel, title
from ptq.targets.tvm.lowering import Call, Feed, Lowering, Operand, Result, Stored, Tensor
from ptq.targets.tvm.memory_plan import Lifetime, MemoryPlan, plan_memory
from ptq.targets.tvm.ports import Port

ENTRY = "ptq_entry"
UNUSED = "ptq_unused"
"""A second public function keeps TVM from wrapping the first as the library's main function."""
WEIGHTS = "ptq_weights"
MARK = "ptq_mark"
PLAIN_C = 1
"""TVM's calling convention of functions with packed arguments: it leaves their arguments alone."""


def lifetimes(calls: Sequence[Call], sizes: Mapping[str, int]) -> dict[str, Lifetime]:
    """From the first call that names a tensor to the last."""
    seen: dict[str, list[int]] = {}
    for number, call in enumerate(calls):
        for operand in call.operands:
            if isinstance(operand, Tensor):
                seen.setdefault(operand.name, []).append(number)
    return {name: Lifetime(sizes[name], at[0], at[-1]) for name, at in seen.items()}


def link_calls(
    lowering: Lowering, inputs: Sequence[Port], outputs: Sequence[Port], *, reuse: bool = True
) -> tuple[IRModule, MemoryPlan]:
    """The module of all kernels and the entry function, and where its tensors are."""
    memory = plan_memory(lifetimes(lowering.calls, lowering.sizes), reuse=reuse)
    names = {kernel: GlobalVar(name) for kernel, name in kernel_names(lowering.calls).items()}
    functions = {var: prim_func(kernel, var.name_hint) for kernel, var in names.items()}
    entry = _entry(lowering, names, inputs, outputs, memory)
    functions |= {GlobalVar(ENTRY): entry, GlobalVar(UNUSED): _unused()}
    return IRModule(functions), memory


def kernel_names(calls: Sequence[Call]) -> dict[Kernel, str]:
    """A C name for every kernel, once where they are equal."""
    kernels = dict.fromkeys(call.kernel for call in calls)
    return {kernel: f"{title(kernel)}_{number}" for number, kernel in enumerate(kernels)}


def _plain_c(name: str) -> None:
    """Head of a public function that C calls as it is, and that returns 0."""
    T.func_name(name)
    T.func_attr({"calling_conv": PLAIN_C, "global_symbol": name})
    T.func_ret(tvm.ir.PrimType("int32"))


def _unused() -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        _plain_c(UNUSED)
        T.Return(T.int32(0))
    return builder.get()


def _entry(
    lowering: Lowering,
    names: Mapping[Kernel, GlobalVar],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    memory: MemoryPlan,
) -> Any:
    """ptq_entry(inputs..., outputs... float*, arena uint8*): a plain C function."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        _plain_c(ENTRY)
        ports: dict[Operand, Any] = {}
        for kind, group in ((Feed, inputs), (Result, outputs)):
            for number, port in enumerate(group):
                name = f"{kind.__name__.lower()}{number}"
                ports[kind(port.name)] = T.arg(name, T.handle(port.dtype))
        arena = T.arg("arena", T.handle("uint8"))
        weights = T.Bind(T.call_extern("handle", WEIGHTS))
        for number, call in enumerate(lowering.calls):
            pointers = [
                _pointer(operand, ports, arena, weights, memory) for operand in call.operands
            ]
            T.evaluate(names[call.kernel](*pointers))
            T.evaluate(T.call_extern("int32", MARK, T.int32(number)))
        T.Return(T.int32(0))
    return builder.get()


def _pointer(
    operand: Operand, ports: Mapping[Operand, Any], arena: Any, weights: Any, memory: MemoryPlan
) -> Any:
    if isinstance(operand, Stored):
        return tirx.handle_add_byte_offset(weights, operand.offset)
    if isinstance(operand, Tensor):
        return tirx.handle_add_byte_offset(arena, memory.offsets[operand.name])
    return ports[operand]
