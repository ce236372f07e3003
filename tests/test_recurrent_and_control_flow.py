"""Networks with recurrence and control flow: never a crash, what stays float is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import ptq
from ptq.integer.reference import Reference

Array = np.ndarray[Any, Any]
SHAPE = (6, 5, 8)


class Recurrent(nn.Module):
    """A linear layer, a recurrent one, another linear layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.memory = kind(8, 8, batch_first=True, bidirectional=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.memory(torch.relu(self.first(x)))[0])
        return y


def samples(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def check(result: ptq.Result, islands: set[str]) -> None:
    """The islands are these, the layers around them integer, and the file runs as the reference."""
    assert {i.op_type for i in result.outline.islands} == islands
    assert all(i.reason for i in result.outline.islands)
    assert len(result.outline.weighted) == 2
    feeds = {"x": samples()}
    expected = Reference(result.program).run(feeds)
    session = ort.InferenceSession(ir.to_proto(result.model).SerializeToString())
    found = session.run(None, feeds)[0]
    before = ort.InferenceSession(ir.to_proto(result.float_model).SerializeToString())
    wanted = before.run(None, feeds)[0]
    for y in (found, next(iter(expected.values()))):
        assert np.linalg.norm(y - wanted) / np.linalg.norm(wanted) < 0.05


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_an_island_between_integer_layers(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = Recurrent(kind).eval()
    result = ptq.quantize(module, [{"x": samples()}], example_inputs=(torch.tensor(samples()),))
    check(result, {kind.__name__})


def graph(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
    """fc1, then the nodes from `h` to `k`, then fc2."""
    rng = np.random.default_rng(0)
    weights |= {name: rng.normal(size=(8, 8)).astype(np.float32) / 3 for name in ("w1", "w2")}
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="fc1"),
            *nodes,
            helper.make_node("MatMul", ["k", "w2"], ["y"], name="fc2"),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])],
        [value("y", TensorProto.FLOAT, ["N", *SHAPE[1:]])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def branch(name: str, op_type: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    node = helper.make_node(op_type, ["h"], [f"{name}_y"])
    return helper.make_graph([node], name, [], [output])


def test_an_if_on_a_value_is_an_island() -> None:
    nodes = [
        helper.make_node("ReduceMax", ["h"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["k"], name="choose",
            then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"),
        ),
    ]  # fmt: skip
    result = ptq.quantize(graph(nodes, {"zero": np.float32(0)}), [{"x": samples()}])
    check(result, {"Greater", "If"})


def test_a_loop_is_an_island() -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Tanh", ["state"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes_on"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, ["N", *SHAPE[1:]]),
        ],
        [
            value("goes_on", TensorProto.BOOL, []),
            value("next", TensorProto.FLOAT, ["N", *SHAPE[1:]]),
        ],
    )
    nodes = [  # as often as there are samples: a constant number would be unrolled
        helper.make_node("Shape", ["h"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["times"]),
        helper.make_node("Loop", ["times", "", "h"], ["k"], name="again", body=body),
    ]
    result = ptq.quantize(graph(nodes, {"first": np.array(0)}), [{"x": samples()}])
    check(result, {"Loop"})


def test_a_recurrent_network_can_be_refused_beforehand() -> None:
    module = Recurrent(nn.LSTM).eval()
    with pytest.raises(ptq.errors.UnsupportedModelError, match="LSTM"):
        ptq.quantize(
            module, [{"x": samples()}], ptq.Recipe(strict=True),
            example_inputs=(torch.tensor(samples()),),
        )  # fmt: skip
