"""Kernels as CUDA text, by TVM's code generator; nothing here needs CUDA."""

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
"""What the code generator wants done; nvcc does the rest."""


MMA = INCLUDE / "ptq_mma.h"
"""The one function that kernels call and CUDA does not have."""


@dataclass(frozen=True)
class CudaText:
    """CUDA C++ of some kernels, each `extern "C"` under its name.

    grids: name -> blocks, and threads of each.
    """

    text: str
    grids: Mapping[str, tuple[int, int]]


def cuda_text(kernels: Mapping[str, Kernel], target: Any) -> CudaText:
    """Generate a function of that name for every kernel."""
    made = {name: device_func(kernel, name, target) for name, kernel in kernels.items()}
    functions = IRModule({GlobalVar(name): device.function for name, device in made.items()})
    lowered = tvm.ir.transform.Sequential(LOWERING)(functions)
    generate = tvm.get_global_func("target.build.cuda")
    text = str(generate(lowered, target).inspect_source())
    mma = MMA.read_text() if MMA.stem in text else ""
    return CudaText(
        mma + text,
        {name: (device.blocks, device.threads) for name, device in made.items()},
    )
