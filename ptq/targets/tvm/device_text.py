"""Kernels as CUDA or OpenCL text, by TVM's code generators; nothing here needs a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import GlobalVar, IRModule

from ptq.kernels.functions import device_func
from ptq.kernels.kernel import Kernel
from ptq.runtime import INCLUDE

LOWERING = (
    tirx.transform.FlattenBuffer(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.LowerIntrin(),
)
"""What the code generator wants done; the device's compiler does the rest."""
WORDS = {
    "cuda": (("ptq_mma", INCLUDE / "ptq_mma.h"),),
    "opencl": (("__kernel", INCLUDE / "ptq_opencl.h"),),
}
"""Functions that kernels call and a language does not have: a word that needs them, and a file."""


@dataclass(frozen=True)
class DeviceText:
    """Source text of some kernels, each a function of C under its name.

    grids: name -> blocks, and threads of each.
    """

    text: str
    grids: Mapping[str, tuple[int, int]]


def device_text(kernels: Mapping[str, Kernel], target: Any) -> DeviceText:
    """Generate a function of that name for every kernel, in the language of the target's kind."""
    kind = str(target.kind.name)
    made = {name: device_func(kernel, name, target) for name, kernel in kernels.items()}
    functions = IRModule({GlobalVar(name): device.function for name, device in made.items()})
    lowered = tvm.ir.transform.Sequential(LOWERING)(functions)
    generate = tvm.get_global_func(f"target.build.{kind}")
    text = str(generate(lowered, target).inspect_source())
    head = "".join(path.read_text() for word, path in WORDS[kind] if word in text)
    grids = {name: (device.blocks, device.threads) for name, device in made.items()}
    return DeviceText(head + text, grids)
