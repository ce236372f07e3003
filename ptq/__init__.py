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
    from ptq.calib_data import Preprocess
    from ptq.debug import DebugOptions, debug_file
    from ptq.evaluate import bench_files, compare_files
    from ptq.grid import Grid
    from ptq.inspection import inspect_file
    from ptq.model import load
    from ptq.pages import PageOptions, make_page
    from ptq.pipeline import quantize
    from ptq.plan import Plan
    from ptq.recipe import Recipe
    from ptq.regress import RegressOptions, make_baseline, regress_file
    from ptq.report.benchmark import BenchOptions
    from ptq.report.gates import Limits
    from ptq.report.measure import Samples
    from ptq.report.record import to_json
    from ptq.reproduce import redo
    from ptq.result import Result
    from ptq.verify import VerifyOptions, verify_file

__version__ = "0.1.0"

# onnxruntime's wheels report to their maker unless told not to; ptq promises no telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BenchOptions",
    "DebugOptions",
    "Grid",
    "Limits",
    "PageOptions",
    "Plan",
    "Preprocess",
    "Recipe",
    "RegressOptions",
    "Result",
    "Samples",
    "VerifyOptions",
    "__version__",
    "bench_files",
    "compare_files",
    "debug_file",
    "inspect_file",
    "load",
    "make_baseline",
    "make_page",
    "quantize",
    "redo",
    "regress_file",
    "to_json",
    "verify_file",
]

_HOMES = {
    "BenchOptions": "ptq.report.benchmark",
    "DebugOptions": "ptq.debug",
    "Grid": "ptq.grid",
    "Limits": "ptq.report.gates",
    "PageOptions": "ptq.pages",
    "Plan": "ptq.plan",
    "Preprocess": "ptq.calib_data",
    "Recipe": "ptq.recipe",
    "RegressOptions": "ptq.regress",
    "Result": "ptq.result",
    "Samples": "ptq.report.measure",
    "VerifyOptions": "ptq.verify",
    "bench_files": "ptq.evaluate",
    "compare_files": "ptq.evaluate",
    "debug_file": "ptq.debug",
    "inspect_file": "ptq.inspection",
    "load": "ptq.model",
    "make_baseline": "ptq.regress",
    "make_page": "ptq.pages",
    "quantize": "ptq.pipeline",
    "redo": "ptq.reproduce",
    "regress_file": "ptq.regress",
    "to_json": "ptq.report.record",
    "verify_file": "ptq.verify",
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
