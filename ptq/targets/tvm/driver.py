"""The entry function: kernel calls in order, on the arena, once for every sample of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Kernel, Parameter, prim_func, title
from ptq.targets.tvm.lowering import Call, Feed, Lowering, Operand, Result, Stored, Tensor
from ptq.targets.tvm.memory_plan import Lifetime, MemoryPlan, plan_memory

ENTRY = "ptq_run"
WEIGHTS = "ptq_weights"


@dataclass(frozen=True)
class Port:
    """An input or output of the module, float32; shape of one call."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of one call."""
        return int(np.prod(self.shape, dtype=np.int64))


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
    kernels: dict[Kernel, tuple[GlobalVar, Any]] = {}
    for call in lowering.calls:
        if call.kernel not in kernels:
            name = f"{title(call.kernel)}_{len(kernels)}"
            kernels[call.kernel] = GlobalVar(name), prim_func(call.kernel, name)
    functions = dict(kernels.values())
    names = {kernel: var for kernel, (var, _) in kernels.items()}
    entry = _entry(lowering, names, inputs, outputs, memory)
    return IRModule({**functions, GlobalVar(ENTRY): entry}), memory


def _entry(
    lowering: Lowering,
    names: Mapping[Kernel, GlobalVar],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    memory: MemoryPlan,
) -> Any:
    """ptq_run(batch, inputs..., outputs..., arena uint8): every buffer flat, [batch * size]."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(ENTRY)
        batch = T.arg("batch", tirx.Var("batch", "int32"))
        ports: dict[Operand, Any] = {}
        for kind, group in ((Feed, inputs), (Result, outputs)):
            for number, port in enumerate(group):
                buffer = T.buffer((batch * port.size,), "float32")
                made = T.arg(f"{kind.__name__.lower()}{number}", buffer)
                ports[kind(port.name)] = made, port.size
        arena = T.arg("arena", T.buffer((memory.size,), "uint8"))
        weights = T.Bind(T.call_extern("handle", WEIGHTS))
        with T.serial(0, batch) as sample:
            for call in lowering.calls:
                pointers = [
                    _pointer(operand, parameter, ports, arena, weights, memory, sample)
                    for operand, parameter in zip(
                        call.operands, call.kernel.parameters(), strict=True
                    )
                ]
                T.evaluate(names[call.kernel](*pointers))
    return builder.get()


def _pointer(
    operand: Operand, parameter: Parameter, ports: Any, arena: Any, weights: Any,
    memory: MemoryPlan, sample: Any,
) -> Any:  # fmt: skip
    if isinstance(operand, Stored):
        return tirx.handle_add_byte_offset(weights, operand.offset)
    if isinstance(operand, Tensor):
        return tirx.address_of(arena[memory.offsets[operand.name]])
    buffer, size = ports[operand]
    return tirx.address_of(buffer[sample * size])
