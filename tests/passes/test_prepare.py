"""prepare() as a whole: what it promises, on small models, hostile ones and the real ones."""

from __future__ import annotations

import os
import signal
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


def test_batch_keeps_its_name_through_pad_and_resize() -> None:
    model = graph(
        "(float[N, 2, 3, 3] x) => (float[A, B, C, D] y)"
        '{ p = Pad(x, pads) r = Resize<mode: string = "nearest">(p, , scales) y = Relu(r) }',
        {
            "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0], np.int64),
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
    )
    shapes = [[str(size) for size in node.outputs[0].shape] for node in prepare(model).graph]
    assert shapes[:2] == [["N", "4", "3", "3"], ["N", "4", "6", "6"]]


def test_constant_nodes_become_initializers() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y)"
        "{ c = Constant<value: tensor = float {2.0}>() h = Mul(x, c) y = Clip(h, c) }"
    )
    prepared = prepare(model)
    assert "Constant" not in ops(prepared)
    assert largest_difference(model, prepared, feeds_for(model)).relative <= TOLERANCE


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("op", "opset", "scale"),
    [("Upsample", 9, 2.0), ("Upsample", 9, 1.5), ("Resize", 10, 1.5), ("Resize", 10, 0.5)],
)
def test_old_resizes_keep_their_coordinates(mode: str, op: str, opset: int, scale: float) -> None:
    # onnx's converter would leave the default of the new Resize: half_pixel.
    size = int(6 * scale)
    model = graph(
        f"(float[N, 3, 6, 6] x) => (float[N, 3, {size}, {size}] y)"
        f'{{ h = {op}<mode: string = "{mode}">(x, s) y = Relu(h) }}',
        {"s": np.array([1, 1, scale, scale], np.float32)},
        opset=opset,
    )
    assert largest_difference(model, prepare(model), feeds_for(model)).relative <= TOLERANCE


def test_a_zero_pad_before_max_pool_stays_a_zero_pad() -> None:
    # MaxPool pads with -inf: merged, a negative border would win over the zeros.
    model = graph(
        "(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)"
        "{ e = Exp(x) n = Neg(e) p = Pad(n, pads) y = MaxPool<kernel_shape: ints = [3, 3]>(p) }",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
    )
    assert largest_difference(model, prepare(model), feeds_for(model)).relative <= TOLERANCE


def test_declared_shapes_of_custom_operators_are_kept() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Foo", ["x"], ["h"], domain="my"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", TensorProto.FLOAT, ["N", 4])],
            [value("y", TensorProto.FLOAT, None)],
            value_info=[value("h", TensorProto.FLOAT, ["N", 7])],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("my", 1)],
        ir_version=8,
    )
    prepared = prepare(load(proto))
    assert ops(prepared) == {"Foo": 1, "Relu": 1}
    assert [str(size) for size in prepared.graph.outputs[0].shape] == ["N", "7"]


def test_declared_shapes_are_kept_where_onnx_has_no_rule() -> None:
    """More of them than rounds of inference."""
    group = "GroupNormalization<num_groups = 2>"
    names = [f"h{i}" for i in range(12)]
    chain = "".join(
        f"{y} = {group}({x}, s, b) " for x, y in zip(["x", *names], names, strict=False)
    )
    declared = ", ".join(f"float[N, 4, 3] {name}" for name in names)
    model = graph(
        f"(float[N, 4, 3] x) => (float[N, 4, 3] y) <{declared}>{{ {chain} y = Relu({names[-1]}) }}",
        {"s": draw(4), "b": draw(4)},
    )
    found = {v.name: v.shape for node in prepare(model).graph for v in node.outputs}
    assert all(found[name] is not None for name in names)


def test_initializers_that_are_inputs_become_constants() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": draw(4, 4)}, opset=8
    )
    proto = ir.to_proto(model)
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    assert [value.name for value in prepare(load(proto)).graph.inputs] == ["x"]


def test_subgraphs_keep_their_meaning() -> None:
    model = graph(
        "(float[N, 64] x, bool c) => (float[N, 64] y) { h = Relu(x) y = If(c) <"
        "  then_branch = t () => (float[N, 64] a) { a = MatMul(h, w) },"
        "  else_branch = e () => (float[N, 64] b) {"
        "    k = Constant<value: tensor = float {2.0}>() b = Mul(h, k) }> }",
        {"w": draw(64, 64)},
    )
    prepared = prepare(model)
    for choice in (True, False):
        feeds = {"x": draw(2, 64), "c": np.array(choice)}
        assert largest_difference(model, prepared, feeds).relative <= TOLERANCE


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
            [value("y", TensorProto.FLOAT, ["N", 4, 2, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    with pytest.raises(InvalidModelError, match="breaks ONNX's rules"):
        prepare(load(proto))


def test_no_time_at_all_is_refused() -> None:
    with (
        pytest.warns(PreparationWarning, match="took longer"),
        pytest.raises(UnsupportedModelError, match="took longer"),
    ):
        prepare(chain(), Limits(seconds=0.01))


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
    with pytest.warns(PreparationWarning, match=r"took longer than 3 s|needed more than 2.0 GiB"):
        prepare(doublings(34), Limits(seconds=3, memory_bytes=2 << 30))


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
