"""Embeddings in the residual stream: 8 bits a column on disk, 16-bit codes, all targets alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.result import Result
from ptq.targets import TARGETS

ROWS, WIDTH = 300, 16
NODES = """w = Gather(words, ids) p = Gather(places, at) s = Add(w, p)
    y = LayerNormalization(s, scale, bias)"""


def tables() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    words = rng.normal(0, 0.05, (ROWS, WIDTH)).astype(np.float32)
    words[:, 3] += 4  # a column far from the others, and a frequent row far from all others
    words[0, 5] = -6
    places = rng.normal(0, 0.02, (8, WIDTH)).astype(np.float32)
    return {"words": words, "places": places}


def quantized(**changes: Any) -> Result:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (int64[N, 8] ids) => (float[N, 8, 16] y)'
    proto = onnx.parser.parse_model(f"{text} {{ {NODES} }}")
    scale = np.ones(WIDTH, np.float32)
    scale[3] = 0.01
    others = {"scale": scale, "bias": np.zeros(WIDTH, np.float32), "at": np.arange(8)}
    for name, array in (tables() | others).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return quantize(proto, [ids()], Recipe(**changes))


def ids() -> dict[str, Any]:
    drawn = np.random.default_rng(1).integers(0, ROWS, (32, 8))
    drawn[:, 0] = 0
    return {"ids": drawn}


@pytest.fixture(scope="module")
def result() -> Result:
    return quantized()


def test_rows_are_within_half_a_step_of_their_column(result: Result) -> None:
    program = result.program
    assert not result.outline.islands
    (table,) = [a for a in program.code_constants.values() if a.shape == (ROWS, WIDTH)]
    assert table.dtype == np.uint8
    codes = Reference(program).run_codes(ids())
    assert codes["w"].dtype == np.uint16
    words, plan = tables()["words"], program.codes["w"]
    step = np.ptp(words, axis=0) / 255
    off = np.abs(plan.dequantize(codes["w"]) - words[ids()["ids"]])
    assert (off <= 0.501 * step + plan.scale).all()


def test_targets_give_the_codes_of_the_reference(result: Result) -> None:
    expected = Reference(result.program).run(ids())["y"]
    for target in ("onnx", "onnx-strict"):
        proto = ir.to_proto(TARGETS[target](result.program))
        session = ort.InferenceSession(proto.SerializeToString())
        np.testing.assert_array_equal(session.run(None, ids())[0], expected, target)


def error(result: Result) -> float:
    found = Reference(result.program).run(ids())["y"]
    words, places = tables().values()
    x = (words[ids()["ids"]] + places).astype(np.float64)
    x -= x.mean(-1, keepdims=True)
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    wanted[..., 3] *= 0.01
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_an_outlier_column_and_a_frequent_row_cost_little(result: Result) -> None:
    assert error(result) < error(quantized(residual_bits=8)) / 3


def test_tables_of_eight_bits_keep_their_whole_range() -> None:
    grid = quantized(residual_bits=8).program.codes["words"]
    ends = grid.dequantize(np.array([grid.low, grid.high], np.uint8))
    assert ends[0] <= tables()["words"].min()
    assert ends[1] >= tables()["words"].max()
