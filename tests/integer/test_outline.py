"""Outline: what melts into what, what stays float and why, which tensors get a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from ptq.errors import RecipeError, UnsupportedModelError
from ptq.integer.outline import Outline, outline
from ptq.passes.prepare import prepare
from ptq.recipe import Recipe


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any], outputs: list[str]
) -> ir.Model:
    """A prepared model with float input x and the given nodes."""
    info = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [info("x", onnx.TensorProto.FLOAT, shape)],
            [info(o, onnx.TensorProto.FLOAT, ["a", "b", "c", "d"]) for o in outputs],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return prepare(ir.from_proto(proto))


def kinds(sketch: Outline) -> list[str]:
    return [unit.kind for unit in sketch.units]


WEIGHT = np.ones((4, 4, 1, 1), np.float32)
node = helper.make_node


def conv(x: str, y: str, weight: str = "w") -> onnx.NodeProto:
    return node("Conv", [x, weight], [y], name=f"conv_{y}", kernel_shape=[1, 1])


def test_relu_after_a_convolution_is_its_saturation() -> None:
    model = graph(
        [conv("x", "c"), node("Relu", ["c"], ["y"])], {"w": WEIGHT}, ["N", 4, 5, 5], ["y"]
    )
    sketch = outline(model, Recipe())
    assert kinds(sketch) == ["conv"]
    assert sketch.units[0].clamp == (0.0, float("inf"))
    assert sketch.sites["y"].limits == (0.0, float("inf"))
    assert "c" not in sketch.sites


def test_relu_of_a_tensor_that_others_read_becomes_a_table() -> None:
    nodes = [conv("x", "c"), node("Relu", ["c"], ["r"]), node("Add", ["c", "r"], ["y"], name="s")]
    sketch = outline(graph(nodes, {"w": WEIGHT}, ["N", 4, 5, 5], ["y"]), Recipe())
    # c + relu(c) is one function of c: a single table, no addition
    assert kinds(sketch) == ["conv", "lookup"]


def test_x_times_sigmoid_x_is_one_table() -> None:
    nodes = [conv("x", "c"), node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])]
    sketch = outline(graph(nodes, {"w": WEIGHT}, ["N", 4, 5, 5], ["y"]), Recipe())
    assert kinds(sketch) == ["conv", "lookup"]
    assert [n.op_type for n in sketch.units[1].nodes] == ["Sigmoid", "Mul"]


def test_first_and_last_multiplications_are_edges() -> None:
    nodes = [conv("x", "a", "w1"), conv("a", "b", "w2"), conv("b", "y", "w3")]
    weights = {f"w{i}": WEIGHT * i for i in (1, 2, 3)}
    sketch = outline(graph(nodes, weights, ["N", 4, 5, 5], ["y"]), Recipe(activation_bits=4))
    assert [unit.edge for unit in sketch.units] == [True, False, True]
    assert {name: site.bits for name, site in sketch.sites.items()} == {
        "x": 8, "a": 4, "b": 8, "y": 8
    }  # fmt: skip


def test_narrow_edge_weights_leave_their_inputs_at_8_bits() -> None:
    nodes = [conv("x", "a", "w1"), conv("a", "y", "w2")]
    weights = {f"w{i}": WEIGHT * i for i in (1, 2)}
    model = graph(nodes, weights, ["N", 4, 5, 5], ["y"])
    narrow = outline(model, Recipe(activation_bits=4, edge_bits=6))
    assert {site.bits for site in narrow.sites.values()} == {8}
    same = outline(model, Recipe(activation_bits=4, edge_bits=None))
    assert (same.sites["x"].bits, same.sites["a"].bits) == (4, 4)


def test_moves_share_their_inputs_grid() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]), node("Relu", ["t"], ["y"])]
    sketch = outline(graph(nodes, {}, ["N", 4, 5, 5], ["y"]), Recipe())
    assert sketch.aliases["t"] == "x"
    assert set(sketch.sites) == {"x", "y"}


def test_what_has_no_integer_form_is_an_island_with_a_reason() -> None:
    nodes = [conv("x", "c"), node("CumSum", ["c", "axis"], ["k"], name="cum"), conv("k", "y")]
    constants = {"w": WEIGHT, "axis": np.array(1)}
    model = graph(nodes, constants, ["N", 4, 5, 5], ["y"])
    sketch = outline(model, Recipe())
    assert [(i.name, i.op_type) for i in sketch.islands] == [("cum", "CumSum")]
    assert "no integer form" in str(sketch.islands[0].reason)
    with pytest.raises(UnsupportedModelError, match="cum"):
        outline(model, Recipe(strict=True))


def test_movement_between_floats_stays_float() -> None:
    nodes = [
        node("CumSum", ["x", "axis"], ["k"], name="cum"),
        node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2], name="turn"),
        node("CumSum", ["t", "axis"], ["y"], name="cum2"),
    ]
    sketch = outline(graph(nodes, {"axis": np.array(1)}, ["N", 4, 5, 5], ["y"]), Recipe())
    assert kinds(sketch) == []
    assert [i.name for i in sketch.islands] == ["cum", "turn", "cum2"]


def test_exclude_keeps_nodes_float_and_refuses_patterns_that_match_nothing() -> None:
    nodes = [conv("x", "c"), conv("c", "y")]
    model = graph(nodes, {"w": WEIGHT}, ["N", 4, 5, 5], ["y"])
    sketch = outline(model, Recipe(exclude=("conv_y",)))
    assert [i.name for i in sketch.islands] == ["conv_y"]
    assert kinds(outline(model, Recipe(include=("re:conv_[c]",)))) == ["conv"]
    with pytest.raises(RecipeError, match="matches no node"):
        outline(model, Recipe(exclude=("fc*",)))


def test_matmul_takes_its_bias() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])]
    constants = {"w": np.ones((5, 3), np.float32), "b": np.ones(3, np.float32)}
    sketch = outline(graph(nodes, constants, ["N", 4, 5, 5], ["y"]), Recipe())
    assert kinds(sketch) == ["gemm"]
    assert sketch.units[0].bias is not None
    assert sketch.units[0].outputs == ("y",)


def test_channel_constants_melt_into_a_table_whatever_the_batch_is_called() -> None:
    nodes = [
        node("Tile", ["x", "twice"], ["t"]),
        node("PRelu", ["t", "slope"], ["p"]),
        node("Conv", ["p", "w"], ["y"], kernel_shape=[1, 1]),
    ]
    constants = {
        "twice": np.array([1, 1, 2, 1]),
        "slope": np.full((4, 1, 1), 0.25, np.float32),
        "w": WEIGHT,
    }
    sketch = outline(graph(nodes, constants, ["N", 4, 5, 5], ["y"]), Recipe())
    assert kinds(sketch) == ["move", "lookup", "conv"]


def test_a_constant_that_broadcasts_its_input_is_an_operand_not_a_table() -> None:
    nodes = [node("Add", ["x", "c"], ["y"])]
    sketch = outline(
        graph(nodes, {"c": np.ones((1, 4, 1, 1), np.float32)}, ["N", 1, 5, 5], ["y"]), Recipe()
    )
    assert kinds(sketch) == ["add"]
