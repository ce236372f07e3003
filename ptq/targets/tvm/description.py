"""What a target's text means: 'llvm', 'llvm:native', 'llvm:TRIPLE:CPU', 'c', 'c:TRIPLE'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from ptq.errors import MissingDependencyError, UsageError

PREFIX = "tvm:"
KINDS = ("llvm", "c")
WANTED = "wanted llvm, llvm:native, llvm:CPU, llvm:TRIPLE:CPU, c or c:TRIPLE, as llvm:x86-64-v3"
INSTALL = "install it with: pip install 'ptq-compiler[tvm]'"


@dataclass(frozen=True)
class Description:
    """A machine to compile for.

    triple, cpu: as LLVM names them; "" is this machine's triple, and its family's oldest member.
    attributes: LLVM features to add, such as '+dotprod'.
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
        if kind not in KINDS or (kind == "c" and parts):
            raise UsageError(f"--target {text}: {WANTED}")
        cpu, *features = (parts[0] if parts else "").split("+")
        if len(parts) > 1 or (parts and not cpu and not features):
            raise UsageError(f"--target {text}: {WANTED}")
        return Description(kind, triple, cpu, tuple(f"+{feature}" for feature in features))

    @property
    def text(self) -> str:
        """What `parse` reads."""
        cpu = self.cpu + "".join(self.attributes)
        return ":".join(part for part in (self.kind, self.triple, cpu) if part)

    def resolved(self) -> Description:
        """With 'native' replaced by what this machine is, so that it can be recorded.

        Raises:
            MissingDependencyError: TVM is not installed.
        """
        require_tvm()
        if self.kind == "c":
            return self
        from tvm.target import codegen

        triple = self.triple or str(codegen.llvm_get_system_triple())
        cpu = str(codegen.llvm_get_system_cpu()) if self.cpu == "native" else self.cpu
        return replace(self, triple=triple, cpu=cpu)

    def target(self) -> Any:
        """The TVM target.

        Raises:
            UsageError: LLVM does not know the CPU.
        """
        from tvm.target import Target, codegen

        if self.kind == "c":
            return Target({"kind": "c"})
        if self.cpu and not codegen.llvm_is_valid_cpu(self.cpu, self.triple):
            raise UsageError(f"--target {self.text}: LLVM knows no CPU {self.cpu}; {WANTED}")
        options: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple}
        if self.cpu:
            options["mcpu"] = self.cpu
        if self.attributes:
            options["mattr"] = list(self.attributes)
        return Target(options)


def _is_triple(part: str) -> bool:
    """x86_64-linux-gnu is one; the CPU x86-64-v3 has as many dashes."""
    return part.count("-") >= 2 and not part.startswith("x86-64")


def require_tvm() -> None:
    """Fail now if TVM is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("tvm") is None:
        raise MissingDependencyError(f"this target needs the package apache-tvm: {INSTALL}")
