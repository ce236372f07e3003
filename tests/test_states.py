"""Networks that are given a state beside the input: their samples cannot be put together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ptq
from ptq import runtime
from ptq.calib_data.spec import input_specs, samples_in
from ptq.integer.outline import outline
from ptq.ladder import held_out_batches
from ptq.model import load
from ptq.passes.context import Context
from ptq.passes.prepare import prepare

Array = np.ndarray[Any, Any]
STEPS = 24


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [1, 8] and the states of two layers [2, 1, 8] give y [1, 8] and the layers' next states."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(16, 8)).astype(np.float32) / 3 for i in range(2)}
    weights |= {"0": np.array(0), "1": np.array(1), "axis": np.array([0])}
    node, value = helper.make_node, helper.make_tensor_value_info
    made = helper.make_graph(
        [
            node("Gather", ["state", "0"], ["s0"], name="first_state", axis=0),
            node("Concat", ["x", "s0"], ["c0"], name="beside_first", axis=1),
            node("MatMul", ["c0", "w0"], ["m0"], name="first"),
            node("Relu", ["m0"], ["n0"], name="first_relu"),
            node("Gather", ["state", "1"], ["s1"], name="second_state", axis=0),
            node("Concat", ["n0", "s1"], ["c1"], name="beside_second", axis=1),
            node("MatMul", ["c1", "w1"], ["m1"], name="second"),
            node("Relu", ["m1"], ["y"], name="second_relu"),
            node("Unsqueeze", ["n0", "axis"], ["u0"], name="first_next"),
            node("Unsqueeze", ["y", "axis"], ["u1"], name="second_next"),
            node("Concat", ["u0", "u1"], ["next"], name="next_states", axis=0),
        ],
        "streaming",
        [value("state", TensorProto.FLOAT, [2, 1, 8]), value("x", TensorProto.FLOAT, [1, 8])],
        [value("y", TensorProto.FLOAT, [1, 8]), value("next", TensorProto.FLOAT, [2, 1, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    path = tmp_path_factory.mktemp("streaming") / "float.onnx"
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Array]]:
    """What the network is given, step by step."""
    rng = np.random.default_rng(1)
    shapes = {"state": (2, 1, 8), "x": (1, 8)}
    return [
        {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="module")
def quantized(
    streaming: Path, steps: list[dict[str, Array]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    result = ptq.quantize(streaming, steps, ptq.Recipe.from_bits(4))
    path = tmp_path_factory.mktemp("quantized") / "model.onnx"
    result.save(path)
    return path


def test_layers_of_a_state_are_not_samples(streaming: Path, steps: list[dict[str, Array]]) -> None:
    assert samples_in(steps[0], input_specs(load(streaming))) == 1


def test_a_held_out_state_is_taken_whole(streaming: Path, steps: list[dict[str, Array]]) -> None:
    graph, recipe = prepare(load(streaming)), ptq.Recipe()
    context = Context(graph, outline(graph, recipe), recipe, lambda size: iter(steps))
    found = list(held_out_batches(context, 1))
    held = context.held_out()
    assert len(held) == len(found) < STEPS
    assert all(batch is steps[index] for batch, index in zip(found, held, strict=True))


def test_what_cannot_be_put_together_is_not_learned(
    streaming: Path, steps: list[dict[str, Array]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = ptq.quantize(streaming, iter(steps), ptq.Recipe.from_bits(4))
    assert "the inputs share no batch axis" in caplog.text
    assert len(result.outline.weighted) == 2
    assert not result.outline.islands


def test_the_file_has_the_codes_of_the_reference(
    quantized: Path, steps: list[dict[str, Array]]
) -> None:
    found = ptq.verify_file(quantized, ptq.VerifyOptions(calib=steps))
    assert found.codes > 0
    assert found.mismatches == 0


def test_a_module_has_the_codes_of_the_reference(
    quantized: Path, steps: list[dict[str, Array]], tmp_path: Path
) -> None:
    pytest.importorskip("tvm")
    path = tmp_path / "model.so"
    ptq.compile_file(quantized, path)
    assert not runtime.load(path).dynamic_batch
    found = ptq.verify_file(path, ptq.VerifyOptions(calib=steps))
    assert found.codes > 0
    assert found.mismatches == 0
