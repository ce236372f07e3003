"""What a target's text means: 'llvm:native', 'llvm:TRIPLE:CPU', 'c', 'cuda:sm_90', 'opencl', ..."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq.cpus import allow_tiles
from ptq.errors import UsageError
from ptq.targets.tvm.tools import require_architectures, require_tvm

PREFIX = "tvm:"
KINDS = ("llvm", "c", "cuda", "opencl")
DEVICES = ("cuda", "opencl")
WITHOUT_CPU = ("c", "opencl")
WANTED = (
    "wanted llvm, llvm:native, llvm:CPU, llvm:TRIPLE:CPU, c, c:TRIPLE, cuda, cuda:GPU or opencl, "
    "as llvm:x86-64-v3 or cuda:sm_80+sm_90"
)
GPUS = ("sm_80", "sm_90")
"""What `cuda` alone means."""
OLDEST_GPU = 61
"""The first with dp4a."""
CPU_INFO = Path("/proc/cpuinfo")
DETECTED = {
    "avxvnni": {"avx_vnni"},
    "amx-tile": {"amx_tile"},
    "amx-int8": {"amx_tile", "amx_int8"},
}
"""LLVM's names of features, and Linux's flags that tell of them."""


@dataclass(frozen=True)
class Description:
    """A machine to compile for.

    triple, cpu: as LLVM names them; "" is this machine's triple, and its family's oldest member.
    attributes: LLVM features to add, such as '+dotprod'; of a GPU, further ones to compile for.
    """

    kind: str
    triple: str = ""
    cpu: str = ""
    attributes: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> Description:
        """Read 'KIND[:TRIPLE][:CPU[+FEATURE...]]'; a leading 'tvm:' is allowed.

        Raises:
            UsageError: another kind, or more parts.
        """
        kind, *parts = text.removeprefix(PREFIX).split(":")
        triple = parts.pop(0) if parts and _is_triple(parts[0]) else ""
        if kind not in KINDS or (kind in WITHOUT_CPU and parts):
            raise UsageError(f"--target {text}: {WANTED}")
        cpu, *features = (parts[0] if parts else "").split("+")
        if len(parts) > 1 or (parts and not cpu and not features):
            raise UsageError(f"--target {text}: {WANTED}")
        made = Description(kind, triple, cpu, tuple(f"+{feature}" for feature in features))
        if made.on_device and (triple or not all(map(_is_gpu, made.architectures))):
            raise UsageError(f"--target {text}: {WANTED}; dp4a needs sm_{OLDEST_GPU} or newer")
        return made

    @property
    def text(self) -> str:
        """What `parse` reads."""
        cpu = self.cpu + "".join(self.attributes)
        return ":".join(part for part in (self.kind, self.triple, cpu) if part)

    @property
    def on_device(self) -> bool:
        """True if it is a GPU."""
        return self.kind in DEVICES

    @property
    def architectures(self) -> tuple[str, ...]:
        """The NVIDIA GPUs to compile for, oldest first."""
        if self.kind != "cuda":
            return ()
        named = [self.cpu, *(feature[1:] for feature in self.attributes)] if self.cpu else GPUS
        return tuple(sorted(set(named), key=lambda name: (len(name), name)))

    def require_tools(self) -> None:
        """Fail now if what compiles for it is not installed.

        Raises:
            MissingDependencyError: it is not. UsageError: it does not know the GPU.
        """
        require_tvm()
        if self.architectures:
            require_architectures(self.architectures)

    def resolved(self) -> Description:
        """With 'native' replaced by what this machine is, so that it can be recorded.

        Raises:
            MissingDependencyError: TVM, or nvcc for a GPU, is not installed.
        """
        self.require_tools()
        if self.kind in WITHOUT_CPU:
            return self
        if self.architectures:
            first, *others = self.architectures
            return replace(self, cpu=first, attributes=tuple(f"+{name}" for name in others))
        from tvm.target import codegen

        triple = self.triple or str(codegen.llvm_get_system_triple())
        made = replace(self, triple=triple)
        if self.cpu != "native":
            return made
        made = replace(made, cpu=str(codegen.llvm_get_system_cpu()))
        return replace(made, attributes=(*self.attributes, *_unnamed(made)))

    def target(self) -> Any:
        """The TVM target.

        Raises:
            UsageError: LLVM does not know the CPU.
        """
        from tvm.target import Target, codegen

        if self.kind in WITHOUT_CPU:
            return Target({"kind": self.kind})
        if self.architectures:
            return Target({"kind": "cuda", "arch": self.architectures[0]})
        if self.cpu and not codegen.llvm_is_valid_cpu(self.cpu, self.triple):
            raise UsageError(f"--target {self.text}: LLVM knows no CPU {self.cpu}; {WANTED}")
        options: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple}
        if self.cpu:
            options["mcpu"] = self.cpu
        if self.attributes:
            options["mattr"] = list(self.attributes)
        return Target(options)


def llvm_features(target: Any) -> tuple[str, ...]:
    """What LLVM knows that the processor of a target has; nothing of other code generators."""
    if str(target.kind.name) != "llvm":
        return ()
    from tvm.target import codegen

    return tuple(sorted(map(str, codegen.llvm_get_cpu_features(target))))


def _unnamed(machine: Description) -> tuple[str, ...]:
    """Features that kernels are chosen by and this machine has, but not its CPU as LLVM names it.

    A virtual machine's model number may be that of a relative without them.
    """
    if not CPU_INFO.is_file():
        return ()
    flags = set(CPU_INFO.read_text().split())
    if not allow_tiles():
        flags -= {"amx_tile"}
    known = llvm_features(machine.target())
    missing = [name for name, needed in DETECTED.items() if name not in known and flags >= needed]
    return tuple(f"+{name}" for name in missing)


def _is_triple(part: str) -> bool:
    """x86_64-linux-gnu is one; the CPU x86-64-v3 has as many dashes."""
    return part.count("-") >= 2 and not part.startswith("x86-64")


def _is_gpu(name: str) -> bool:
    found = re.fullmatch(r"sm_(\d+)[a-z]?", name)
    return found is not None and int(found[1]) >= OLDEST_GPU
