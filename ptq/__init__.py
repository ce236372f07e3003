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
    from ptq.compilation import compile_file, save_compiled
    from ptq.debug import DebugOptions, debug_file
    from ptq.evaluate import (
        Evaluation,
        accuracy_of,
        bench_files,
        compare_files,
        perplexity_of,
    )
    from ptq.grid import Grid
    from ptq.inspection import inspect_file
    from ptq.mixed.budgets import Budgets
    from ptq.mixed.explore import pick
    from ptq.mixed.front import ExploreOptions, explore_model
    from ptq.mixed.within import quantize_within
    from ptq.model import load
    from ptq.pages import PageOptions, make_page, save_page
    from ptq.pipeline import quantize
    from ptq.plan import Plan
    from ptq.precision import load_map, save_map
    from ptq.recipe import Recipe
    from ptq.regress import RegressOptions, make_baseline, regress_file, write_verdicts
    from ptq.report.baseline import save_baseline
    from ptq.report.benchmark import BenchOptions
    from ptq.report.gates import Limits
    from ptq.report.measure import Samples
    from ptq.report.record import to_json
    from ptq.reproduce import check_reproducible, redo
    from ptq.result import Result
    from ptq.targets.tvm.module import CompileOptions
    from ptq.verify import VerifyOptions, verify_file
    from ptq.weights_only import WeightsResult, quantize_weights

__version__ = "0.1.0"

# onnxruntime's wheels report to their maker unless told not to; ptq promises no telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BenchOptions",
    "Budgets",
    "CompileOptions",
    "DebugOptions",
    "Evaluation",
    "ExploreOptions",
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
    "WeightsResult",
    "__version__",
    "accuracy_of",
    "bench_files",
    "check_reproducible",
    "compare_files",
    "compile_file",
    "debug_file",
    "explore_model",
    "inspect_file",
    "load",
    "load_map",
    "make_baseline",
    "make_page",
    "perplexity_of",
    "pick",
    "quantize",
    "quantize_weights",
    "quantize_within",
    "redo",
    "regress_file",
    "save_baseline",
    "save_compiled",
    "save_map",
    "save_page",
    "to_json",
    "verify_file",
    "write_verdicts",
]

_HOMES = {
    "BenchOptions": "ptq.report.benchmark",
    "Budgets": "ptq.mixed.budgets",
    "CompileOptions": "ptq.targets.tvm.module",
    "DebugOptions": "ptq.debug",
    "Evaluation": "ptq.evaluate",
    "ExploreOptions": "ptq.mixed.front",
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
    "WeightsResult": "ptq.weights_only",
    "accuracy_of": "ptq.evaluate",
    "bench_files": "ptq.evaluate",
    "check_reproducible": "ptq.reproduce",
    "compare_files": "ptq.evaluate",
    "compile_file": "ptq.compilation",
    "debug_file": "ptq.debug",
    "explore_model": "ptq.mixed.front",
    "inspect_file": "ptq.inspection",
    "load": "ptq.model",
    "load_map": "ptq.precision",
    "make_baseline": "ptq.regress",
    "make_page": "ptq.pages",
    "perplexity_of": "ptq.evaluate",
    "pick": "ptq.mixed.explore",
    "quantize": "ptq.pipeline",
    "quantize_weights": "ptq.weights_only",
    "quantize_within": "ptq.mixed.within",
    "redo": "ptq.reproduce",
    "regress_file": "ptq.regress",
    "save_baseline": "ptq.report.baseline",
    "save_compiled": "ptq.compilation",
    "save_map": "ptq.precision",
    "save_page": "ptq.pages",
    "to_json": "ptq.report.record",
    "verify_file": "ptq.verify",
    "write_verdicts": "ptq.regress",
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
