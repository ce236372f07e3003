"""Compare two float models through onnxruntime: the proof that a rewrite kept the meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import Array


@dataclass(frozen=True)
class Difference:
    """The output that differs most: `relative` is max |a - b| over max |a| of that output."""

    output: str
    relative: float


def largest_difference(before: ir.Model, after: ir.Model, feeds: Mapping[str, Array]) -> Difference:
    """Run both models on `feeds` (input name -> array), compare every output.

    Raises:
        ValueError: the outputs differ in number, name, shape or dtype.
    """
    old, new = run_float(before, feeds), run_float(after, feeds)
    if list(old) != list(new):
        raise ValueError(f"outputs {list(old)} became {list(new)}")
    worst = Difference("", 0.0)
    for name, expected in old.items():
        got = new[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ValueError(
                f"{name}: {expected.dtype}{expected.shape} became {got.dtype}{got.shape}"
            )
        scale = float(np.max(np.abs(expected), initial=0)) or 1.0
        error = float(np.max(np.abs(got.astype(np.float64) - expected), initial=0)) / scale
        if not error <= worst.relative:
            worst = Difference(name, error)
    return worst


def run_float(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of `model` by name, computed as written (no graph optimisation)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
