"""ptq.execute.float: taps do not change values, groups respect the memory budget."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq.errors import CalibrationError, UnsupportedModelError, UsageError
from ptq.execute import float as float_module
from ptq.execute.float import FloatRunner


def network(op: str = "Relu", middle: int | str = 5) -> ir.Model:
    """y = op(x w + b) w2 with random weights; `middle` is the declared size of h and r."""
    rng = np.random.default_rng(0)
    sizes = {"w": (4, 5), "b": (5,), "w2": (5, 3)}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    info = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["h"]),
            helper.make_node(op, ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        "network",
        [info("x", shape=["N", 4])],
        [info("y", shape=["N", 3])],
        [numpy_helper.from_array(x, name) for name, x in weights.items()],
        value_info=[info(name, shape=["N", middle]) for name in "hr"],
    )
    opset = [helper.make_opsetid("", 21)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))


BATCH = {"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}


def test_tapped_values_are_those_of_the_formula() -> None:
    model = network()
    weights = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    h = BATCH["x"] @ weights["w"] + weights["b"]
    got = FloatRunner(model, ["h", "r", "y"]).run(BATCH)
    assert list(got) == ["h", "r", "y"]
    np.testing.assert_allclose(got["h"], h, rtol=1e-5)
    np.testing.assert_allclose(got["y"], np.maximum(h, 0) @ weights["w2"], rtol=1e-5)


def test_taps_do_not_change_the_output() -> None:
    model = network()
    alone = FloatRunner(model, []).run(BATCH)["y"]
    assert np.array_equal(FloatRunner(model, ["p", "h", "r", "y"]).run(BATCH)["y"], alone)


def test_the_model_is_left_alone() -> None:
    model = network()
    FloatRunner(model, ["h", "r"]).run(BATCH)
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_only_the_taps_are_outputs() -> None:
    outputs = FloatRunner(network(), ["h", "x"]).open().get_outputs()
    assert [output.name for output in outputs] == ["h"]


def test_a_graph_input_can_be_tapped() -> None:
    got = FloatRunner(network(), ["x", "r", "x"]).run(BATCH)
    assert got["x"] is BATCH["x"]
    assert got["r"].shape == (2, 5)


@pytest.mark.parametrize("middle", [5, "M"], ids=["shapes known", "shapes probed"])
def test_split_covers_every_tap_within_the_budget(middle: int | str) -> None:
    batch = {"x": np.zeros((26_000, 4), np.float32)}
    runner = FloatRunner(network(middle=middle), ["x", "h", "r", "y"], memory_mb=1)
    parts = [part.taps for part in runner.split(batch)]
    assert parts == [("x", "h"), ("r", "y")]


def test_split_yields_the_runner_itself_if_all_fits() -> None:
    runner = FloatRunner(network(), ["h", "r"])
    assert list(runner.split(BATCH)) == [runner]


def test_large_weights_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FloatRunner(network(), []).run(BATCH)["y"]
    monkeypatch.setattr(float_module, "LARGEST_PROTO_BYTES", 1)
    assert np.array_equal(FloatRunner(network(), []).run(BATCH)["y"], expected)


def test_external_weights_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(network(), path, external_data="m.data", size_threshold_bytes=0)
    expected = FloatRunner(network(), []).run(BATCH)["y"]
    assert np.array_equal(FloatRunner(ir.load(path), []).run(BATCH)["y"], expected)


def test_unknown_tap_is_refused() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        FloatRunner(network(), ["nowhere"])


def test_a_weight_is_not_a_tap() -> None:
    with pytest.raises(UsageError, match="w2"):
        FloatRunner(network(), ["w2"])


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        FloatRunner(network(op="NoSuchOp"), []).run(BATCH)


def test_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CalibrationError, match="cannot run"):
        FloatRunner(network(), []).run({"x": np.zeros((2, 9), np.float32)})
