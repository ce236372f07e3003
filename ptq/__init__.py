"""Quantise a trained network after training, and compile it to integers.

    result = ptq.quantize("model.onnx", calib="samples.npz", recipe=ptq.Recipe.from_bits(4))
    result.save("model_w4a8.onnx")

A name is imported when it is first used: `import ptq` alone loads no onnxruntime, torch or TVM.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptq.grid import Grid
    from ptq.model import load
    from ptq.pipeline import Result, quantize
    from ptq.plan import Plan
    from ptq.recipe import Recipe

__version__ = "0.1.0"

# onnxruntime's wheels report to their maker unless told not to; ptq promises no telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Grid", "Plan", "Recipe", "Result", "__version__", "load", "quantize"]

_HOMES = {
    "Grid": "ptq.grid",
    "Plan": "ptq.plan",
    "Recipe": "ptq.recipe",
    "Result": "ptq.pipeline",
    "load": "ptq.model",
    "quantize": "ptq.pipeline",
}


if not TYPE_CHECKING:  # a type checker that sees it accepts every name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
