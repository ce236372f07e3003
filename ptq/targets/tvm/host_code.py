"""A network for a CPU: kernels and an entry function that calls them, by TVM's compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.support import cc

from ptq.kernels.functions import compile_for_host
from ptq.targets.tvm.description import llvm_features
from ptq.targets.tvm.driver import link_calls
from ptq.targets.tvm.linking import LINK_FLAGS, Contents, native_objects
from ptq.targets.tvm.lowering import Lowering
from ptq.targets.tvm.memory_plan import MemoryPlan
from ptq.targets.tvm.ports import Port

SOURCES = ("clock.c", "contents.c", "module.c", "parallel.c", "processor.c")
"""What is linked into every module, so that it needs no library but libc."""


@dataclass(frozen=True)
class HostCode:
    """executable: as TVM compiled it. needed: features of the processor, by LLVM's names."""

    executable: Any
    needed: tuple[str, ...]

    def link(self, path: Path, compiler: str, folder: Path, contents: Contents) -> None:
        """With TVM's object files."""
        names = "".join(f'"{name}", ' for name in self.needed)
        header = f"#define PTQ_NEEDED_FEATURES {names}\n"
        objects = native_objects(folder, compiler, contents, SOURCES, header)
        create = cc.cross_compiler(compiler, options=[*LINK_FLAGS])
        self.executable.export_library(str(path), fcompile=create, addons=objects)


def host_code(
    lowering: Lowering, inputs: Sequence[Port], outputs: Sequence[Port], target: Any, reuse: bool
) -> tuple[HostCode, MemoryPlan]:
    """Compile all calls, and say where their tensors are."""
    module, memory = link_calls(lowering, inputs, outputs, reuse=reuse)
    return HostCode(compile_for_host(module, target), llvm_features(target)), memory
