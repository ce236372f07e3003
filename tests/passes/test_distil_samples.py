"""Samples without data: batch norm's memory is read before it is folded, and matched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import ptq
from ptq.model import load
from ptq.passes.batch_norm_statistics import Statistics, batch_norm_statistics
from ptq.passes.context import Progress
from ptq.passes.distil_samples import DistilSamples, can_distil, mismatch
from ptq.passes.prepare import prepare

BETA, GAMMA = np.float32([3.0, -1.0, 0.5, 2.0]), np.float32([2.0, -0.5, 1.0, 0.25])


def network(batch: str | int = "N") -> onnx.ModelProto:
    """logits = Gemm(mean(Relu(BN(Conv(x))))) whose training data were far from standard noise."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "gamma": GAMMA,
        "beta": BETA,
        "mean": rng.normal(0, 1, 4).astype(np.float32),
        "var": rng.uniform(1, 2, 4).astype(np.float32),
        "head": rng.normal(size=(5, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def silent(progress: Progress) -> None:
    """Nobody watches."""


def test_statistics_are_found_under_the_name_that_folding_keeps() -> None:
    loaded = load(network())
    statistics = batch_norm_statistics(loaded)
    assert list(statistics) == ["n"]
    np.testing.assert_array_equal(statistics["n"].mean, BETA)
    np.testing.assert_array_equal(statistics["n"].deviation, np.abs(GAMMA))
    prepared = prepare(loaded)
    assert "BatchNormalization" not in {node.op_type for node in prepared.graph}
    assert list(can_distil(prepared, statistics)) == ["n"]


def test_distilled_samples_match_the_statistics_and_every_second_batch_stays() -> None:
    import torch

    from ptq.execute.differentiable import FloatGraph

    loaded = load(network())
    prepared, statistics = prepare(loaded), batch_norm_statistics(loaded)
    start = [{"x": np.random.default_rng(i).normal(size=(16, 3, 8, 8))} for i in range(2)]
    found = DistilSamples(iterations=80, lr=0.1)(prepared, statistics, start, silent)
    graph = FloatGraph(prepared.graph, 21, outputs=["n"])

    def distance(batch: dict[str, np.ndarray]) -> float:
        y = graph.run({"x": torch.tensor(batch["x"], dtype=torch.float32)})["n"]
        return float(mismatch(y, statistics["n"]))

    assert distance(found[0]) < 0.05 * distance(start[0])
    assert found[1] is start[1]


def test_mismatch_is_zero_where_the_moments_agree() -> None:
    import torch

    y = torch.tensor(np.random.default_rng(0).normal(size=(5, 2, 3, 3)))
    axes = (0, 2, 3)
    known = Statistics(y.numpy().mean(axes), y.numpy().std(axes))
    assert float(mismatch(y, known)) == pytest.approx(0.0, abs=1e-9)
    moved = Statistics(known.mean + 1.0, known.deviation)
    assert float(mismatch(y, moved)) > 0.5


def test_a_fixed_batch_is_not_distilled() -> None:
    loaded = load(network(batch=1))
    assert can_distil(prepare(loaded), batch_norm_statistics(loaded)) == {}


def test_ranges_without_data_follow_the_batch_norms(caplog: pytest.LogCaptureFixture) -> None:
    result = ptq.quantize(network(), recipe=ptq.Recipe().without_samples())
    assert "fitted to the statistics of 1 batch norms" in caplog.text
    grid = next(grid for name, grid in result.plan.activations.items() if name in ("n", "r"))
    top = float(grid.scale) * (grid.high - grid.zero_point)
    assert top > 5.0, "the first channel has mean 3 and deviation 2"
