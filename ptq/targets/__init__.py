"""Targets print the integer program; they add no numerics of their own.

A target's module is imported when its model is asked for, so that `import ptq` stays light.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptq.integer.program import Program

Emit = Callable[..., "ir.Model"]


def _module(name: str) -> Emit:
    def emit(program: Program, *, io: Literal["float", "integer"] = "float") -> ir.Model:
        """Print `program` as an ONNX model; see the target's module."""
        model: ir.Model = import_module(f"ptq.targets.{name}").emit(program, io=io)
        return model

    return emit


TARGETS: dict[str, Emit] = {
    "onnx": _module("onnx_qoperator"),
    "onnx-qdq": _module("onnx_qdq"),
    "onnx-strict": _module("onnx_strict"),
}
