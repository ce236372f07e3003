"""Inputs of products scaled against their weights, and folded into the norm before them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import ptq
from ptq.report.session import open_session
from tests.weights_only.networks import WIDTH, gated_network, inputs, weight

W3 = ptq.Recipe.preset("w3a16").replace(group_size=WIDTH, effort="fast")
LOUD = np.where(np.arange(WIDTH) % 8 == 3, 64.0, 1.0).astype(np.float32)


def normed(loud: np.ndarray = LOUD, *, read_twice: bool = False) -> onnx.ModelProto:
    """Two products of a layer norm whose channels are `loud`, with weights that make up for it."""
    rng = np.random.default_rng(0)
    constants = {"scale": loud, "bias": loud * rng.normal(size=WIDTH).astype(np.float32)}
    constants |= {n: weight(rng, WIDTH, 24) / loud[:, None] for n in ("a.weight", "b.weight")}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["h"], "norm", axis=-1),
        helper.make_node("MatMul", ["h", "a.weight"], ["a"], "a"),
        helper.make_node("MatMul", ["h", "b.weight"], ["b"], "b"),
        helper.make_node("Mul", ["a", "b"], ["y"], "gate"),
    ]
    outputs = ["y", "h"] if read_twice else ["y"]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "normed",
        [helper.make_tensor_value_info("x", float32, ["N", WIDTH])],
        [helper.make_tensor_value_info(name, float32, ["N", None]) for name in outputs],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def made(model: onnx.ModelProto, **change: object) -> ptq.WeightsResult:
    return ptq.quantize_weights(model, [inputs(512)], W3.replace(**change))


def sqnr(result: ptq.WeightsResult) -> float:
    """Of the output on other inputs, dB."""
    x = {"x": inputs(256, seed=2)}
    wanted, found = (
        open_session(m, threads=1).run(x)["y"].astype(np.float64)
        for m in (result.float_model, result.model)
    )
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


def alphas(result: ptq.WeightsResult) -> set[float]:
    return {outcome.alpha for outcome in result.outcomes.values()}


def test_loud_inputs_are_scaled_and_that_gains() -> None:
    plain, scaled = made(normed(), balance=False), made(normed())
    assert alphas(plain) == {0.0}
    assert 0.0 not in alphas(scaled)
    assert len(alphas(scaled)) == 1
    assert sqnr(scaled) > sqnr(plain) + 2
    assert "AWQ" in scaled.report.layers[0].note


def test_scales_are_folded_exactly() -> None:
    """Powers of two: norm and weights change by their exponents only."""
    result = made(normed())
    nodes = {node.name: node for node in result.model.graph}
    rows = [nodes["norm"].inputs[i].const_value.numpy() for i in (1, 2)]
    constants = {i.name: numpy_helper.to_array(i) for i in normed().graph.initializer}
    factors = constants["scale"] / rows[0]
    assert (np.log2(factors) % 1 == 0).all()
    assert len(set(factors)) > 1
    np.testing.assert_array_equal(constants["bias"] / rows[1], factors)
    assert [n.op_type for n in result.model.graph].count("Mul") == 1


@pytest.mark.parametrize(
    "model", [normed(np.ones(WIDTH, np.float32)), normed(read_twice=True)], ids=["even", "read"]
)
def test_what_gains_nothing_or_is_read_elsewhere_stays(model: onnx.ModelProto) -> None:
    assert alphas(made(model)) == {0.0}


def loud_gate(factor: float) -> onnx.ModelProto:
    """The gated network, its function unchanged, with two channels in eight of `u` louder."""
    model = gated_network()
    arrays = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    for layer in range(2):
        loud = np.where(np.arange(arrays["down0.weight"].shape[0]) % 4 == 1, factor, 1.0)
        arrays[f"up{layer}.weight"] *= loud.astype(np.float32)
        arrays[f"down{layer}.weight"] /= loud.astype(np.float32)[:, None]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return model


def test_scales_of_a_gate_go_into_the_product_before_it() -> None:
    plain, scaled = (made(loud_gate(64.0), group_size=16, balance=b) for b in (False, True))
    names = {name for name, found in scaled.outcomes.items() if found.alpha}
    assert names  # which of the two gains by 5 % hangs on the numbers drawn
    assert names <= {"down0", "down1"}
    assert sqnr(scaled) > sqnr(plain) + 1
    before, after = (
        parts_of(result.model, f"up{min(names)[-1]}.weight") for result in (plain, scaled)
    )
    np.testing.assert_array_equal(before["codes"], after["codes"])
    factors = before["scale"].astype(float) / after["scale"]
    assert (np.log2(factors) % 1 == 0).all()
    assert (factors == factors[:, :1]).all()
    assert len(np.unique(factors)) > 1


def parts_of(model: ir.Model, weight_name: str) -> dict[str, np.ndarray]:
    """Codes, scales and so on of a product."""
    return {
        str(name).removeprefix(f"{weight_name}/"): value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
        if name.startswith(f"{weight_name}/")
    }
