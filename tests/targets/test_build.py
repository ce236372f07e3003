"""What every ONNX target shares: names, boundary, metadata, islands."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq.errors import PtqError, UnsupportedModelError
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Apply, Boundary, Dequantize, Lookup, Program, Quantize, Ref
from ptq.targets import TARGETS
from ptq.targets.inspect_runtime import float_ops
from ptq.targets.names import value_names

HALF = Requantizer(np.array(1), np.array(1), 128)
ALL = pytest.mark.parametrize("target", list(TARGETS))
FLOAT = ir.DataType.FLOAT


@pytest.fixture
def add(program_of, grid_of):
    """y = x + x, over codes."""
    plans = {"x": grid_of(0.1, 100), "y": grid_of(0.1, 128, 4, 250)}
    step = Add("add", "x", "x", "y", (1, 1), HALF)
    return program_of({"x": ("N", 3, "W")}, (step,), plans)


@ALL
def test_boundary_keeps_names_types_and_dynamic_shapes(add, target):
    model = TARGETS[target](add)
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    assert (x.name, x.dtype, str(x.shape)) == ("x", FLOAT, str(ir.Shape(["N", 3, "W"])))
    assert (y.name, y.dtype) == ("y", FLOAT)


@ALL
def test_model_is_valid_and_says_who_made_it(add, target):
    proto = ir.to_proto(TARGETS[target](add))
    onnx.checker.check_model(proto, full_check=False)
    assert proto.producer_name == "ptq"
    assert proto.producer_version


@ALL
def test_float_and_integer_boundary_agree(add, target, run, rng):
    x = rng.normal(0, 8, (2, 3, 5)).astype(np.float32)
    y = run(TARGETS[target](add), {"x": x})["y"]
    codes = run(TARGETS[target](add, io="integer"), {"x": add.codes["x"].quantize(x)})["y"]
    assert codes.dtype == np.uint8
    assert (add.codes["y"].dequantize(codes) == y).all()


@ALL
def test_integer_boundary_tells_its_grid(add, target):
    model = TARGETS[target](add, io="integer")
    grid = json.loads(model.metadata_props["ptq.codes.y"])
    assert np.float32(grid["scale"]) == np.float32(0.1)
    assert (grid["zero_point"], grid["low"], grid["high"]) == (128, 4, 250)
    assert [v.dtype for v in model.graph.outputs] == [ir.DataType.UINT8]


def test_integer_boundary_leaves_no_float(add):
    model = TARGETS["onnx"](add, io="integer")
    assert float_ops(ir.to_proto(model).SerializeToString()) == []
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}


def test_code_names_avoid_names_that_the_model_has(grid_of, run):
    steps = (
        Quantize("q", "x"),
        Dequantize("dq", "x"),
        Apply("a", "Identity", "", (Ref("x_quantized", False),), (Ref("z", False),)),
    )
    boundary = Boundary("x_quantized", FLOAT, (2,))
    program = Program(
        (Boundary("x", FLOAT, (2,)), boundary),
        (Boundary("z", FLOAT, (2,)),),
        (steps[0], steps[2]),
        {"x": grid_of()},
    )
    assert value_names(program)[Ref("x", True)] == "x_quantized_1"
    feeds = {"x": np.ones(2, np.float32), "x_quantized": np.full(2, 5, np.float32)}
    assert (run(TARGETS["onnx"](program), feeds)["z"] == 5).all()


def test_equal_constants_are_stored_once(add):
    values = [v.const_value for v in TARGETS["onnx"](add).graph.initializers.values()]
    keys = [(t.dtype, t.numpy().tobytes()) for t in values]
    assert len(keys) == len(set(keys))


@ALL
def test_island_runs_beside_codes_and_reads_the_boundary(grid_of, target, run):
    """y = lookup(x) + sin(x): the island reads the float input itself, or its decoded codes."""
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    program = Program(
        (Boundary("x", FLOAT, (4,)),),
        (Boundary("y", FLOAT, (4,)),),
        (
            Quantize("q", "x"),
            Lookup("flip", "x", "t", table),
            Dequantize("dq", "t"),
            Apply("sin", "Sin", "", (Ref("x", False),), (Ref("s", False),), (), "a float island"),
            Apply("sum", "Add", "", (Ref("t", False), Ref("s", False)), (Ref("y", False),)),
        ),
        {"x": grid_of(0.25, 128), "t": grid_of(0.25, 128)},
    )
    codes = np.array([3, 100, 128, 255], np.uint8)
    x = program.codes["x"].dequantize(codes)
    wanted = program.codes["t"].dequantize(table[codes]) + np.sin(x)
    assert np.allclose(run(TARGETS[target](program), {"x": x})["y"], wanted, atol=1e-6)
    found = run(TARGETS[target](program, io="integer"), {"x": codes})["y"]
    assert np.allclose(found, wanted, atol=1e-6)


def test_island_with_a_body_reads_captured_values(grid_of, run):
    """y = x > 0 ? x + x : x, the branches capture x."""
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["sum"])],
        "then",
        [],
        [onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None)],
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["same"])],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None)],
    )
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info("x", onnx.TensorProto.FLOAT, [2]), info("c", onnx.TensorProto.BOOL, [])],
        [info("y", onnx.TensorProto.FLOAT, [2])],
    )
    attributes = next(iter(ir.from_proto(onnx.helper.make_model(graph)).graph)).attributes
    island = Apply(
        "if", "If", "", (Ref("c", False),), (Ref("y", False),), tuple(attributes.values()), "If"
    )
    program = Program(
        (Boundary("x", FLOAT, (2,)), Boundary("c", ir.DataType.BOOL, ())),
        (Boundary("y", FLOAT, (2,)),),
        (Quantize("q", "x"), island),
        {"x": grid_of(0.5, 100)},
    )
    codes, true = np.array([90, 120], np.uint8), np.array(True)
    x = program.codes["x"].dequantize(codes)
    assert (run(TARGETS["onnx"](program), {"x": x, "c": true})["y"] == 2 * x).all()
    model = TARGETS["onnx"](program, io="integer")
    assert (run(model, {"x": codes, "c": np.array(False)})["y"] == x).all()


def test_unknown_step_is_refused(grid_of):
    program = Program((), (), (Boundary("odd", FLOAT, ()),), {"x": grid_of()})
    with pytest.raises(UnsupportedModelError, match="odd: this target cannot print a Boundary"):
        TARGETS["onnx"](program)


def test_reading_an_unmade_value_is_a_bug(grid_of):
    program = Program((), (), (Dequantize("dq", "x"),), {"x": grid_of()})
    with pytest.raises(PtqError, match="dq: reads x before"):
        TARGETS["onnx"](program)


@ALL
def test_names_and_types_inside_take_no_space(add, target):
    proto = ir.to_proto(TARGETS[target](add))
    assert not proto.graph.value_info
    assert max(len(tensor.name) for tensor in proto.graph.initializer) <= 3
