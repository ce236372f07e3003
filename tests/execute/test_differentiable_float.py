"""FloatGraph: values as onnxruntime has them, gradients as calculus has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from ptq.errors import UnsupportedModelError, UsageError
from ptq.execute.differentiable import FloatGraph, to_array, to_tensor
from ptq.execute.differentiable.resizing import AxisResize, resize_matrix
from ptq.execute.float import FloatRunner
from tests.graphs import random_graph


def make(
    nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, opset: int = 21
) -> ir.Model:
    """A model from nodes; x is its input, y its output."""
    inits = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        inits,
    )
    imports = [helper.make_opsetid("", opset)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def conv_gelu() -> ir.Model:
    """y = gelu(conv(x, w) + b)."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[0, 1, 1, 0]),
        helper.make_node("Gelu", ["c"], ["y"]),
    ]
    return make(nodes, {"w": weight, "b": np.zeros(3, np.float32)})


@pytest.mark.parametrize("seed", range(16))
def test_random_graph_has_onnxruntimes_values(seed: int) -> None:
    proto, shapes = random_graph(seed)
    model = ir.from_proto(proto)
    rng = np.random.default_rng(seed)
    feeds = {n: rng.normal(size=(2, *s)).astype(np.float32) for n, s in shapes.items()}
    graph = FloatGraph(model.graph, 21)
    found = graph.run({n: to_tensor(a) for n, a in feeds.items()})
    names = [str(v.name) for node in model.graph for v in node.outputs if v.name]
    expected = FloatRunner(model, names).run(feeds)
    for name in names:
        np.testing.assert_allclose(to_array(found[name]), expected[name], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    model = conv_gelu()
    graph = FloatGraph(model.graph, 21, outputs=["y"])
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = to_tensor(model.graph.initializers["w"].const_value.numpy()).double()
    b = torch.zeros(3, dtype=torch.float64)

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return graph.run({"x": x, "w": w, "b": b})["y"]

    leaves = tuple(t.requires_grad_() for t in (x, w, b))
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("op", ["Elu", "Selu", "Celu", "Softplus", "Mish", "Exp"])
def test_gradient_stays_finite_where_the_other_branch_overflows(op: str) -> None:
    graph = FloatGraph(make([helper.make_node(op, ["x"], ["y"])]).graph, 21)
    x = torch.tensor([-200.0, 80.0], requires_grad=True)
    graph.run({"x": x})["y"].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_constant_is_replaced_by_a_value_of_its_name() -> None:
    graph = FloatGraph(conv_gelu().graph, 21, outputs=["c"])
    x, w = torch.ones(1, 2, 4, 5), torch.zeros(3, 2, 3, 3, requires_grad=True)
    y = graph.run({"x": x, "w": w})["c"]
    assert (y == 0).all()
    y.sum().backward()
    assert w.grad is not None
    assert w.grad.abs().sum() > 0


def test_all_values_or_only_the_outputs_are_returned() -> None:
    x = {"x": torch.ones(1, 2, 4, 5)}
    assert FloatGraph(conv_gelu().graph, 21).run(x).keys() == {"c", "y"}
    assert FloatGraph(conv_gelu().graph, 21, outputs=["y"]).run(x).keys() == {"y"}


def test_inputs_of_a_subgraph_are_what_its_nodes_do_not_compute() -> None:
    nodes = list(conv_gelu().graph)
    assert FloatGraph(nodes, 21).inputs == ("x",)
    assert FloatGraph(nodes[1:], 21).inputs == ("c",)


def test_missing_input_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="value x is missing"):
        FloatGraph(conv_gelu().graph, 21).run({})


def test_unknown_output_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="output z"):
        FloatGraph(conv_gelu().graph, 21, outputs=["z"])


def test_unsupported_operator_is_refused_when_the_graph_is_made() -> None:
    with pytest.raises(UnsupportedModelError, match="no NonZero;"):
        FloatGraph(make([helper.make_node("NonZero", ["x"], ["y"])]).graph, 21)


def test_old_opset_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="opset 6"):
        FloatGraph(conv_gelu().graph, 6)


def test_unsupported_attribute_value_names_the_node() -> None:
    node = helper.make_node("Pad", ["x", "p"], ["y"], name="pad_7", mode="mirror")
    graph = FloatGraph(make([node], {"p": np.array([1, 1])}).graph, 21)
    with pytest.raises(UnsupportedModelError, match=r"pad_7 \(Pad\): mode=mirror"):
        graph.run({"x": torch.ones(4)})


def test_failure_inside_torch_says_in_which_node() -> None:
    graph = FloatGraph(conv_gelu().graph, 21)
    with pytest.raises(RuntimeError) as caught:
        graph.run({"x": torch.ones(1, 5, 4, 5)})
    assert "(Conv)" in caught.value.__notes__[0]


@settings(deadline=None)
@given(
    size=st.integers(2, 9),
    scale=st.sampled_from([0.4, 0.5, 0.75, 1.3, 2.0, 2.5, 3.0]),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(
        ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
    ),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    antialias=st.booleans(),
    exclude=st.booleans(),
)
def test_resize_matrix_is_onnxs_reference_on_unit_vectors(
    size: int, scale: float, mode: str, coordinates: str, nearest: str, antialias: bool,
    exclude: bool,
) -> None:  # fmt: skip
    from onnx.reference import ReferenceEvaluator

    antialias = antialias and mode != "nearest"
    exclude = exclude and mode == "cubic"
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode=mode, coordinate_transformation_mode=coordinates,
        nearest_mode=nearest, antialias=int(antialias), exclude_outside=int(exclude), axes=[1],
    )  # fmt: skip
    scale = float(np.float32(scale))
    feeds = {"x": np.eye(size), "s": np.array([scale], np.float32)}
    (expected,) = ReferenceEvaluator(node, opsets={"": 21}).run(None, feeds)
    axis = AxisResize(
        size, int(size * scale), scale, mode, coordinates, nearest,
        antialias=antialias, exclude_outside=exclude,
    )  # fmt: skip
    if axis.output:
        matrix, outside = resize_matrix(axis)
        tolerance = 1e-4 if mode == "cubic" else 1e-12  # onnx's cubic coefficients are float32
        np.testing.assert_allclose(matrix.T, np.asarray(expected), rtol=tolerance, atol=tolerance)
        assert not outside.any()


def test_quick_gelu_and_its_kin_of_onnxruntime() -> None:
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["q"], domain="com.microsoft"),
        helper.make_node("FastGelu", ["q"], ["f"], domain="com.microsoft"),
        helper.make_node("Gelu", ["f"], ["y"], domain="com.microsoft"),
    ]
    model = make(nodes)
    model.opset_imports["com.microsoft"] = 1
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    found = FloatGraph(model.graph, 21).run({"x": to_tensor(x)})
    expected = FloatRunner(model, ["q", "f", "y"]).run({"x": x})
    for name, values in expected.items():
        np.testing.assert_allclose(to_array(found[name]), values, rtol=1e-3, atol=1e-5)


def test_bfloat16_survives_the_way_there_and_back() -> None:
    array = np.array([1.5, -0.1, 3e38], ir.DataType.BFLOAT16.numpy())
    assert to_tensor(array).dtype == torch.bfloat16
    assert (to_array(to_tensor(array)) == array).all()


def test_tensor_does_not_share_memory_with_the_array() -> None:
    array = np.zeros(3, np.float32)
    tensor = to_tensor(array)
    array[:] = 1
    assert (tensor == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seed", range(16))
def test_gpu_has_the_cpus_values(seed: int) -> None:
    proto, shapes = random_graph(seed)
    model = ir.from_proto(proto)
    rng = np.random.default_rng(seed)
    feeds = {n: to_tensor(rng.normal(size=(2, *s))).float() for n, s in shapes.items()}
    expected = FloatGraph(model.graph, 21).run(feeds)
    on_gpu = FloatGraph(model.graph, 21, device="cuda")
    found = on_gpu.run({n: x.cuda() for n, x in feeds.items()})
    for name, x in expected.items():
        np.testing.assert_allclose(to_array(found[name]), to_array(x), rtol=1e-2, atol=1e-2)
