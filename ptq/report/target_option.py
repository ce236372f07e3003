"""`--target` of `ptq quantize`: what is printed as ONNX, or tvm:... for a compiled module."""

from __future__ import annotations

from typing import Any

import click

from ptq.report.options import TARGETS

COMPILED = "tvm:"


class Target(click.ParamType[str]):
    """One of TARGETS, or 'tvm:' and a target of `ptq compile`."""

    name = "target"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, if it can be one."""
        if value not in TARGETS and not is_compiled(value):
            wanted = ", ".join((*TARGETS, "tvm:llvm", "tvm:llvm:native", "tvm:c", "tvm:cuda"))
            self.fail(f"got {value!r}; wanted one of {wanted}", param, ctx)
        return value

    def get_metavar(self, *_: Any, **__: Any) -> str:
        """As a choice is shown."""
        return f"[{'|'.join(TARGETS)}|tvm:...]"


def is_compiled(target: str | None) -> bool:
    """True if the target is a module that TVM compiles."""
    return target is not None and target.startswith(COMPILED)
