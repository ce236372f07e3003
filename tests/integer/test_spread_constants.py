"""Constants that are spread over a batch become codes: a class token, positions for every head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ptq
from tests.passes.small_graphs import draw, graph

SPREADS = {
    "Expand": "n = Shape<start = 0, end = 1>(x) s = Concat<axis = 0>(n, rest) c = Expand(t, s)",
    "Tile": "n = Shape<start = 0, end = 1>(x) s = Concat<axis = 0>(n, ones) c = Tile(t, s)",
    "Gather": "n = Shape<start = 0, end = 1>(x) z = ConstantOfShape<value = int64[1] {0}>(n) "
    "c = Gather(t, z)",
}


@pytest.mark.parametrize("op_type", SPREADS)
def test_no_float_is_left(op_type: str, tmp_path: Path) -> None:
    text = f"(float[N, 3, 4] x) => (float[N, 3, 4] y) {{ {SPREADS[op_type]} y = Add(x, c) }}"
    arrays = {"t": draw(1, 3, 4), "rest": np.array([3, 4]), "ones": np.array([1, 1])}
    model = graph(text, {name: array for name, array in arrays.items() if name in text})
    samples = [{"x": draw(16, 3, 4)}]
    result = ptq.quantize(model, samples, ptq.Recipe(effort="fast", strict=True))
    assert not [island for island in result.outline.islands if island.reason]
    path = tmp_path / "model.onnx"
    result.save(path)
    assert ptq.verify_file(path, ptq.VerifyOptions(calib=samples)).passed
