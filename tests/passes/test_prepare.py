"""prepare() as a whole: what it promises, on small models, hostile ones and the real ones."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from small_graphs import check, draw, feeds_for, graph, ops

from ptq.errors import InvalidModelError, UnsupportedModelError
from ptq.model import load
from ptq.passes import simplify_child
from ptq.passes.equivalence import largest_difference
from ptq.passes.prepare import prepare
from ptq.passes.simplify import PreparationWarning
from ptq.sandbox import Limits

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[3] / "shared"))

TOLERANCE = 1e-4
"""Relative to the largest logit: folded constants are rounded once to float32 in every layer."""


def real_model(name: str) -> ir.Model:
    path = SHARED / "models" / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set PTQ_SHARED")
    return load(path)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        (
            "resnet20_cifar10.onnx",
            {"Conv", "Relu", "Add", "Slice", "Pad", "GlobalAveragePool", "Reshape", "Gemm"},
        ),
        (
            "efficientnet_lite0.onnx",
            {"Conv", "Clip", "Add", "GlobalAveragePool", "Reshape", "Gemm"},
        ),
    ],
)
def test_real_models(name: str, allowed: set[str]) -> None:
    model = real_model(name)
    original = ir.to_proto(model).SerializeToString(deterministic=True)
    prepared = prepare(model)
    assert set(ops(prepared)) == allowed
    assert ir.to_proto(model).SerializeToString(deterministic=True) == original
    check(prepared)
    for batch in (1, 3):
        assert largest_difference(model, prepared, feeds_for(model, batch)).relative <= TOLERANCE
    batches = {str(out.shape[0]) for node in prepared.graph for out in node.outputs if out.shape}
    assert batches == {"N"}
    assert all(out.shape is not None for node in prepared.graph for out in node.outputs)


def test_prepared_twice_is_prepared_once() -> None:
    prepared = prepare(real_model("resnet20_cifar10.onnx"))
    again = prepare(prepared)
    assert [(n.op_type, n.outputs[0].name) for n in again.graph] == [
        (n.op_type, n.outputs[0].name) for n in prepared.graph
    ]


CHAIN = (
    "(float[N, 3, 8, 8] x) => (float[N, A] y) {"
    "  p = Pad(x, pads) c = Conv(p, w) b = BatchNormalization(c, g, b0, m, v) r = Relu(b)"
    "  d = ConvTranspose<strides: ints = [2, 2]>(r, t) e = Mul(d, s)"
    "  a = AveragePool<kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]>(e)"
    '  z = Resize<mode: string = "linear">(a, , scales) i = Identity(z)'
    "  f = Flatten(i) h = MatMul(f, wt) y = Add(h, bias) }"
)


def chain() -> ir.Model:
    return graph(
        CHAIN,
        {
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
            "w": draw(4, 3, 3, 3),
            "g": draw(4, seed=1),
            "b0": draw(4, seed=2),
            "m": draw(4, seed=3),
            "v": np.abs(draw(4, seed=4)) + 0.5,
            "t": draw(4, 2, 2, 2),
            "s": draw(2, 1, 1),
            "scales": np.array([1, 1, 0.5, 0.5], np.float32),
            "wt": draw(128, 5),
            "bias": draw(5),
        },
    )


def test_a_chain_of_everything() -> None:
    model = chain()
    prepared = prepare(model)
    assert {"Pad", "BatchNormalization", "ConvTranspose", "Resize", "Identity"}.isdisjoint(
        ops(prepared)
    )
    check(prepared)
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE
    names = [node.name for node in prepared.graph]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 22])
def test_opset_goes_up_only(opset: int) -> None:
    model = graph("(float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = Softmax(h) }", opset=opset)
    prepared = prepare(model)
    assert prepared.opset_imports[""] == max(opset, 21)
    assert prepared.ir_version >= 10
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE


def test_constant_nodes_become_initializers() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y)"
        "{ c = Constant<value: tensor = float {2.0}>() h = Mul(x, c) y = Clip(h, c) }"
    )
    prepared = prepare(model)
    assert "Constant" not in ops(prepared)
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE


def test_functions_are_inlined() -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    function = helper.make_function("f", "ReluNeg", ["a"], ["b"], body, opsets[:1])
    nodes = [
        helper.make_node("ReluNeg", ["x"], ["h"], domain="f"),
        helper.make_node("ReluNeg", ["h"], ["y"], domain="f"),
    ]
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", TensorProto.FLOAT, ["N", 4])],
            [value("y", TensorProto.FLOAT, ["N", 4])],
        ),
        functions=[function],
        opset_imports=opsets,
        ir_version=10,
    )
    model = load(proto)
    prepared = prepare(model)
    assert not prepared.functions
    assert set(ops(prepared)) <= {"Relu", "Neg"}
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE


def test_nan_in_weights_is_refused_by_name() -> None:
    weights = {"w": np.full((4, 4), np.nan, np.float32)}
    model = graph("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", weights)
    with pytest.raises(InvalidModelError, match="w: NaN"):
        prepare(model)


def test_an_operator_used_wrongly_is_refused() -> None:
    node = helper.make_node("Conv", ["x"], ["y"])
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [value("x", TensorProto.FLOAT, ["N", 4, 4, 4])],
            [value("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    with pytest.raises(InvalidModelError, match="breaks ONNX's rules"):
        prepare(load(proto))


def test_a_simplifier_without_time_is_left_out_with_a_warning() -> None:
    model = chain()
    nothing = Limits(seconds=0.01)
    with pytest.raises(UnsupportedModelError, match="took longer"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(model, nothing)


def crash(payload: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return payload


def test_a_simplifier_that_fails_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify_child, "run_simplifier", crash)
    model = chain()
    with pytest.warns(PreparationWarning, match="onnx-simplifier left out: it was killed"):
        prepared = prepare(model)
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE
    assert {"Pad", "BatchNormalization", "ConvTranspose", "Resize"}.isdisjoint(ops(prepared))


def doublings(count: int) -> ir.Model:
    """Shape(x) doubled `count` times: with data propagation, 2 ** count integers."""
    nodes = ["s0 = Shape(x)"]
    nodes += [f"s{i + 1} = Concat<axis: int = 0>(s{i}, s{i})" for i in range(count)]
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    text = f"(float[N, 4] x) => (int64[M] y) {{ {' '.join(nodes)} y = Abs(s{count}) }}"
    return load(onnx.parser.parse_model(f"{head} g {text}"))


def test_a_model_that_hangs_shape_inference_ends_at_the_limit() -> None:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PreparationWarning)
        prepare(doublings(34), Limits(seconds=3, memory_bytes=2 << 30))
    assert time.perf_counter() - start < 30


def test_weights_above_two_gib_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The search for NaN has its own tests; through holes of a sparse file it would take seconds.
    monkeypatch.setattr("ptq.passes.prepare.check_finite", lambda model: None)
    shape = [1024, 540_000]  # 2.2 GB of float32, a sparse file
    weight = TensorProto(name="w", dims=shape, data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * shape[0] * shape[1])
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", TensorProto.FLOAT, ["N", shape[0]])],
            [value("y", TensorProto.FLOAT, ["N", shape[1]])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    prepared = prepare(load(path))
    assert isinstance(prepared.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert prepared.opset_imports[""] == 21
