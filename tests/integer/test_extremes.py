"""The largest and the smallest along some axes: of codes they are those of the values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ptq
from ptq.targets.tvm.module import CompileOptions
from tests.graphs import GraphBuilder

SHAPE = (3, 6, 5)
# name -> operator, axes, keepdims and what is left of [n, 4, 6, 5]
EXTREMES = {
    "global": ("ReduceMax", (2, 3), 0, (4,)),
    "over_channels": ("ReduceMin", (1,), 1, (1, 6, 5)),
    "rows": ("ReduceMin", (-1,), 0, (4, 6)),
    "all_but_one": ("ReduceMax", (-3, -1), 1, (1, 6, 1)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_no_target_computes_them_in_float(name: str, tmp_path: Path) -> None:
    op_type, axes, keepdims, left = EXTREMES[name]
    rng = np.random.default_rng(0)
    b = GraphBuilder(rng)
    h = b.node("Conv", ["x", b.weight(4, 3, 1, 1), b.bias(4)])
    y = b.node(op_type, [h, b.constant(np.array(axes, np.int64))], keepdims=keepdims)
    model = b.model({"x": SHAPE}, {b.node("Neg", [y]): left})
    samples = [{"x": rng.normal(size=(4, *SHAPE)).astype(np.float32)}]
    result = ptq.quantize(model, samples, ptq.Recipe(effort="fast", strict=True))
    path = tmp_path / "model.onnx"
    result.save(path)
    assert ptq.verify_file(path, ptq.VerifyOptions(calib=samples)).passed
    pytest.importorskip("tvm")
    ptq.compile_file(path, tmp_path / "model.so", CompileOptions("tvm:c"))
    found = ptq.verify_file(tmp_path / "model.so", ptq.VerifyOptions(calib=samples))
    assert found.codes > 0
    assert found.passed
