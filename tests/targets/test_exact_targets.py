"""Targets `onnx` and `onnx-strict`: the codes of every step equal the reference's, bit for bit."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq.integer.arithmetic import Requantizer, exact_shift, nudge_scales, onnx_ratio
from ptq.integer.program import (
    Add,
    Apply,
    Convolve,
    Gemm,
    Lookup,
    MatMul,
    Mean,
    Multiply,
    Normalize,
    Ref,
    Softmax,
)
from ptq.targets import TARGETS
from ptq.targets.inspect_runtime import runtime_graph
from ptq.targets.known_tables import is_sigmoid

EXACT = pytest.mark.parametrize("target", ["onnx", "onnx-strict"])

# name: (input spatial size, weight shape, groups, strides, dilations, pads)
CONVOLUTIONS = {
    "1d": ((17,), (12, 8, 5), 1, (1,), (1,), (2, 2)),
    "1d_dilated_asymmetric": ((19,), (12, 8, 3), 1, (2,), (3,), (4, 1)),
    "2d": ((9, 11), (16, 8, 3, 3), 1, (1, 1), (1, 1), (1, 1, 1, 1)),
    "pointwise": ((9, 11), (16, 8, 1, 1), 1, (1, 1), (1, 1), (0, 0, 0, 0)),
    "strided_asymmetric": ((9, 11), (5, 8, 3, 3), 1, (2, 3), (1, 1), (0, 1, 2, 1)),
    "dilated": ((13, 13), (7, 8, 3, 3), 1, (1, 1), (2, 2), (2, 2, 2, 2)),
    "grouped": ((9, 9), (12, 2, 3, 3), 4, (1, 1), (1, 1), (1, 1, 1, 1)),
    "depthwise": ((9, 9), (8, 1, 3, 3), 8, (2, 2), (1, 1), (1, 1, 1, 1)),
    "depthwise_multiplier": ((9, 9), (16, 1, 5, 5), 8, (1, 1), (1, 1), (2, 2, 2, 2)),
    "3d": ((4, 5, 6), (6, 8, 2, 2, 2), 1, (1, 1, 1), (1, 1, 1), (0, 0, 1, 1, 0, 0)),
}


def convolution(rng, y, x, case, private):
    """A Convolve whose float32 multiplier is exact by nudged scales, or by private ones."""
    _, shape, groups, strides, dilations, pads = case
    limit = exact_shift(y.zero_point, y.low, y.high)
    size = np.prod(shape[1:])
    wanted = np.exp(rng.uniform(-1, 1, shape[0])) * y.scale / x.scale / (90 * size**0.5)
    scale = nudge_scales(wanted, x.scale, y.scale, limit)
    ratio = onnx_ratio(x.scale, scale, y.scale)
    shift = np.full(shape[0], limit)
    multiplier = (ratio.astype(np.float64) * 2.0**limit).astype(np.int64)
    if private:
        scale = (scale * np.float32(1.7)).astype(np.float32)
    return Convolve(
        "conv",
        "x",
        "y",
        rng.integers(-128, 128, shape).astype(np.int8),
        rng.integers(-3000, 3000, shape[0]).astype(np.int32),
        Requantizer(multiplier, shift, y.zero_point, y.low, y.high),
        strides=strides,
        dilations=dilations,
        pads=pads,
        groups=groups,
        weight_scale=scale,
    )


@EXACT
@pytest.mark.parametrize("private", [False, True], ids=["real_scales", "private_scales"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, private, target, rng, program_of, grid_of, mismatches):
    case = CONVOLUTIONS[name]
    x, y = grid_of(0.031, 114), grid_of(0.047, 60, 4, 231)
    step = convolution(rng, y, x, case, private)
    program = program_of({"x": ("N", 8, *case[0])}, (step,), {"x": x, "y": y})
    codes = rng.integers(0, 256, (3, 8, *case[0])).astype(np.uint8)
    assert mismatches(program, target, {"x": codes}) == 0


@EXACT
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 24), (2, 5, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize("known", [True, False], ids=["known_rank", "unknown_rank"])
def test_gemm(known, shape, bias, target, rng, program_of, grid_of, requantizer_of, mismatches):
    x, y = grid_of(0.02, 130), grid_of(0.05, 128)
    scale = np.exp(rng.uniform(-1, 1, 33)).astype(np.float32) * np.float32(2e-3)
    step = Gemm(
        "gemm",
        "x",
        "y",
        rng.integers(-128, 128, (24, 33)).astype(np.int8),
        rng.integers(-9999, 9999, 33).astype(np.int32) if bias else None,
        requantizer_of(onnx_ratio(x.scale, scale, y.scale), y),
        scale,
    )
    symbolic = tuple(f"d{i}" for i in range(len(shape) - 1))
    shapes = {"x": (*symbolic, 24) if known else None}
    program = program_of(shapes, (step,), {"x": x, "y": y})
    assert mismatches(program, target, {"x": rng.integers(0, 256, shape).astype(np.uint8)}) == 0


@EXACT
@pytest.mark.parametrize("shapes", [((4, 6), (6, 5)), ((2, 3, 4, 6), (2, 3, 6, 5))])
def test_matmul_of_two_activations(
    shapes, target, rng, program_of, grid_of, requantizer_of, mismatches
):
    plans = {"a": grid_of(0.02, 130), "b": grid_of(0.03, 90), "y": grid_of(0.05, 128)}
    step = MatMul("matmul", "a", "b", "y", requantizer_of(0.004, plans["y"]))
    program = program_of(dict(zip("ab", shapes, strict=True)), (step,), plans)
    feeds = {n: rng.integers(0, 256, s).astype(np.uint8) for n, s in zip("ab", shapes, strict=True)}
    assert mismatches(program, target, feeds) == 0


def pairs():
    """All 65536 pairs of two codes, as [256, 1] and [1, 256]."""
    every = np.arange(256, dtype=np.uint8)
    return {"a": every[:, None], "b": every[None, :]}


@EXACT
@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(1, 9000),
    second=st.integers(-9000, 9000),
    shift=st.integers(0, 13),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 127)),
)
def test_add_and_subtract_all_pairs(
    target, first, second, shift, zeros, program_of, grid_of, mismatches
):
    za, zb, half = zeros
    plans = {"a": grid_of(0.1, za), "b": grid_of(0.1, zb), "y": grid_of(0.1, 2 * half)}
    requantizer = Requantizer(np.array(1), np.array(shift), 2 * half, 3, 250)
    step = Add("add", "a", "b", "y", (first, second), requantizer)
    program = program_of({"a": (256, 1), "b": (1, 256)}, (step,), plans)
    assert mismatches(program, target, pairs()) == 0


@EXACT
@settings(max_examples=15, deadline=None)
@given(
    ratio=st.floats(1e-5, 2.0),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 127)),
)
def test_multiply_all_pairs(target, ratio, zeros, program_of, grid_of, requantizer_of, mismatches):
    za, zb, half = zeros
    plans = {"a": grid_of(0.1, za), "b": grid_of(0.1, zb), "y": grid_of(0.1, 2 * half)}
    step = Multiply("mul", "a", "b", "y", requantizer_of(ratio, plans["y"], spare_bits=1))
    program = program_of({"a": (256, 1), "b": (1, 256)}, (step,), plans)
    assert mismatches(program, target, pairs()) == 0


@EXACT
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["known_rank", "unknown_rank"])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (3,), (1,), (2,), (0, 2), (0, 1, 2, 3)])
def test_mean(axes, known, keepdims, target, rng, program_of, grid_of, requantizer_of, mismatches):
    shape, plans = (2, 6, 5, 7), {"x": grid_of(0.04, 101), "y": grid_of(0.02, 100, 2, 240)}
    count = int(np.prod([shape[a] for a in axes]))
    requantizer = requantizer_of(2 / count, plans["y"], bits=24 - int(np.ceil(np.log2(count))))
    step = Mean("mean", "x", "y", axes, keepdims, count, requantizer)
    program = program_of({"x": ("N", *shape[1:]) if known else None}, (step,), plans)
    assert mismatches(program, target, {"x": rng.integers(0, 256, shape).astype(np.uint8)}) == 0


@EXACT
@pytest.mark.parametrize("axis", [None, 1, -3, -1])
def test_lookup(axis, target, rng, program_of, grid_of, mismatches):
    shape, plans = (2, 6, 5, 7), {"x": grid_of(0.04, 101), "y": grid_of(0.02, 100)}
    rows = () if axis is None else (shape[axis],)
    table = rng.integers(0, 256, (*rows, 256)).astype(np.uint8)
    step = Lookup("lookup", "x", "y", table, axis)
    program = program_of({"x": ("N", *shape[1:])}, (step,), plans)
    assert mismatches(program, target, {"x": rng.integers(0, 256, shape).astype(np.uint8)}) == 0


@EXACT
def test_lookup_of_equal_channels(target, rng, program_of, grid_of, mismatches):
    shape, plans = (2, 5, 6), {"x": grid_of(0.04, 101), "y": grid_of(0.02, 100)}
    table = rng.integers(0, 256, (3, 256)).astype(np.uint8)[[0, 1, 0, 2, 1, 0]]
    program = program_of({"x": ("N", 5, 6)}, (Lookup("lookup", "x", "y", table, -1),), plans)
    assert mismatches(program, target, {"x": rng.integers(0, 256, shape).astype(np.uint8)}) == 0
    model = TARGETS[target](program, io="float")
    assert max(v.const_value.size for v in model.graph.initializers.values()) == 3 * 256


@EXACT
@settings(max_examples=40, deadline=None)
@given(
    alpha=st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.3, 1.0, -0.5]),
    scales=st.tuples(st.floats(1e-3, 1.0), st.floats(0.2, 5.0)),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 127)),
    low=st.integers(0, 40),
)
def test_lookup_of_two_slopes(target, alpha, scales, zeros, low, program_of, grid_of, mismatches):
    x = grid_of(scales[0], zeros[0])
    y = grid_of(scales[0] * scales[1], 2 * zeros[1], low)
    values = x.dequantize(np.arange(256, dtype=np.uint8))
    table = y.quantize(np.where(values < 0, values * np.float32(alpha), values))
    step = Lookup("lookup", "x", "y", table)
    program = program_of({"x": (256,)}, (step,), {"x": x, "y": y})
    assert mismatches(program, target, {"x": np.arange(256, dtype=np.uint8)}) == 0


def test_two_slopes_become_one_node(program_of, grid_of):
    x, y = grid_of(0.03, 120), grid_of(0.02, 30)
    values = x.dequantize(np.arange(256, dtype=np.uint8))
    leaky = y.quantize(np.where(values < 0, values * np.float32(0.1), values))
    bent = np.where(np.arange(256) == 77, 255, leaky).astype(np.uint8)
    for table, found in ((leaky, "QLinearLeakyRelu"), (bent, "GatherElements")):
        step = Lookup("lookup", "x", "y", table)
        model = TARGETS["onnx"](program_of({"x": (256,)}, (step,), {"x": x, "y": y}))
        assert found in {node.op_type for node in model.graph}


@EXACT
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("numerator", [256, 255, 16])
def test_softmax(axis, numerator, target, rng, program_of, grid_of, mismatches):
    plans = {"x": grid_of(0.04, 101), "y": grid_of(1 / numerator, 0)}
    step = _softmax(axis, numerator)
    program = program_of({"x": ("N", 9, 300)}, (step,), plans)
    codes = rng.integers(0, 256, (2, 9, 300)).astype(np.uint8)
    codes[0, :, :] = 7
    codes[1, 2, 5], codes[1, 2, 6:] = 255, 0
    codes[1, 3, :4], codes[1, 3, 4:] = 255, 0  # a quarter each: ties of sixteenths
    assert mismatches(program, target, {"x": codes}) == 0


def _softmax(axis: int, numerator: int, keep: Ref | None = None, scale: float = 0.04) -> Softmax:
    table = np.rint(2.0**15 * np.exp(-scale * np.arange(256))).astype(np.int32)
    return Softmax("softmax", "x", "y", axis, table, numerator, min(numerator, 255), keep)


@EXACT
@pytest.mark.parametrize("length", [512, 513, 3000])
def test_softmax_of_rows_whose_sum_float32_just_holds_or_does_not(
    length, target, rng, program_of, grid_of, mismatches
):
    plans = {"x": grid_of(0.04, 101), "y": grid_of(1 / 256, 0)}
    program = program_of({"x": (6, "L")}, (_softmax(-1, 256),), plans)
    codes = np.full((6, length), 200, np.uint8)
    codes[1:] -= rng.integers(0, [[2], [9], [30], [90], [200]], (5, length)).astype(np.uint8)
    assert mismatches(program, target, {"x": codes}) == 0


@EXACT
@pytest.mark.parametrize("tieless", [True, False])
def test_norm_of_16_bits(tieless, target, rng, program_of, grid_of, mismatches):
    """Means halfway between two codes, and results so where gains and offsets allow it."""
    n, wide = 12, Requantizer(np.array(1), np.array(0), 1200, 0, 2**16 - 1)
    plans = {"x": grid_of(0.01, 0), "s": grid_of(0.01, 1200, 0, 2**16 - 1), "y": grid_of(0.1, 128)}
    gain, offset = rng.integers(-9, 9, n) * 2**11, rng.integers(-9, 9, n) * 2**39
    rounding = Requantizer(np.array(1), np.array(40), 128)
    offset = offset + 1 if tieless else offset
    norm = Normalize("norm", "s", "y", True, 0, 1, 2, 41, gain, offset, rounding, 1e-5)
    assert norm.tieless == tieless
    steps = (Add("sum", "x", "x", "s", (7, 2), wide), norm)
    program = program_of({"x": ("N", n)}, steps, plans)
    codes = rng.integers(0, 256, (4000, n)).astype(np.uint8)
    halves = (codes.astype(int).sum(1) * 9 * 2) % (2 * n) == n
    assert halves.sum() > 99
    assert mismatches(program, target, {"x": codes}) == 0
    casts = [node for node in TARGETS[target](program).graph if node.op_type == "Round"]
    assert target == "onnx-strict" or len(casts) == (0 if tieless else 1)


@EXACT
@pytest.mark.parametrize("scale", [0.04, 0.05])
def test_masked_softmax(scale, target, rng, program_of, grid_of, mismatches):
    """Hidden scores may be larger than all others; a row may be hidden whole.

    Tables of 0.05 end in zero, which is where target onnx puts what is hidden.
    """
    keep = rng.random((4, 1, 300)) < 0.5
    keep[0], keep[1], keep[2, :, 1:] = False, True, False
    plans = {"x": grid_of(scale, 101), "y": grid_of(1 / 256, 0)}
    step = _softmax(-1, 256, Ref("keep", False), scale)
    assert (step.exp_table[-1] == 0) == (scale > 0.045)
    program = program_of({"x": (4, 9, "L")}, (step,), plans, constants={"keep": keep})
    codes = rng.integers(0, 256, (4, 9, 300)).astype(np.uint8)
    codes[3] = np.where(keep[3], codes[3] // 8, 255)
    codes[1, :, :2] = [0, 255]
    assert mismatches(program, target, {"x": codes}) == 0


GATHERED = np.random.default_rng(0).integers(-6, 6, (2, 6, 5, 40))
# what moves codes: op_type -> (constant operands, attributes, number of outputs)
MOVES = {
    "Reshape": ({"s": np.array([0, -1])}, {}, 1),
    "Transpose": ({}, {"perm": [0, 2, 3, 1]}, 1),
    "MaxPool": ({}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}, 1),
    "ReduceMax": ({"axes": np.array([-1, 1])}, {"keepdims": 0}, 1),
    "ReduceMin": ({"axes": np.array([1])}, {}, 1),
    "Pad": ({"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "v": np.array(101, np.uint8)}, {}, 1),
    "Clip": ({"l": np.array(9, np.uint8), "h": np.array(99, np.uint8)}, {}, 1),
    "Resize": ({"r": None, "s": np.array([1, 1, 2, 3], np.float32)}, {"mode": "nearest"}, 1),
    "Split": ({}, {"axis": 1, "num_outputs": 2}, 2),
    "Slice": ({"a": np.array([1]), "b": np.array([5]), "c": np.array([2])}, {}, 1),
    "GatherElements": ({"i": GATHERED}, {"axis": -1}, 1),
    "ReverseSequence": ({"n": np.array([4, 2])}, {"time_axis": 1, "batch_axis": 0}, 1),
}


@EXACT
@pytest.mark.parametrize("op_type", MOVES)
def test_movement_of_codes(op_type, target, rng, program_of, grid_of, mismatches):
    operands, attributes, count = MOVES[op_type]
    names = ["y", "z"][:count]
    refs = [None if v is None else Ref(k, False) for k, v in operands.items()]
    step = Apply(
        "move",
        op_type,
        "",
        (Ref("x", True), *refs),
        tuple(Ref(name, True) for name in names),
        tuple(ir.convenience.convert_attributes(attributes)),
    )
    plans = {name: grid_of(0.04, 101) for name in ("x", *names)}
    constants = {k: v for k, v in operands.items() if v is not None}
    program = program_of({"x": ("N", 6, 6, 6)}, (step,), plans, tuple(names), constants=constants)
    codes = rng.integers(0, 256, (2, 6, 6, 6)).astype(np.uint8)
    assert mismatches(program, target, {"x": codes}) == 0


@EXACT
def test_constant_operand_held_as_codes(target, rng, program_of, grid_of, mismatches):
    plans = {"x": grid_of(0.04, 101), "k": grid_of(0.01, 6), "y": grid_of(0.1, 128)}
    step = Add("add", "x", "k", "y", (400, 100), Requantizer(np.array(1), np.array(10), 128))
    constants = {"k": rng.integers(0, 256, (6, 1)).astype(np.uint8)}
    program = program_of({"x": ("N", 6, 7)}, (step,), plans, code_constants=constants)
    codes = rng.integers(0, 256, (2, 6, 7)).astype(np.uint8)
    assert mismatches(program, target, {"x": codes}) == 0


def residual_network(rng, program_of, grid_of, requantizer_of):
    """conv -> (conv, +) -> mean -> gemm."""
    plans = {
        "x": grid_of(0.02, 128),
        "c": grid_of(0.03, 0),
        "d": grid_of(0.025, 100),
        "s": grid_of(0.04, 60),
        "m": grid_of(0.03, 60),
        "f": grid_of(0.03, 60),
        "y": grid_of(0.1, 128),
    }
    same = ((), (16, 16, 3, 3), 1, (1, 1), (1, 1), (1, 1, 1, 1))
    first = convolution(rng, plans["c"], plans["x"], ((), (16, 8, 3, 3), *same[2:]), False)
    second = convolution(rng, plans["d"], plans["c"], same, False)
    weight = rng.integers(-128, 128, (16, 10)).astype(np.int8)
    scale = np.full(10, 3e-3, np.float32)
    ratio = onnx_ratio(plans["f"].scale, scale, plans["y"].scale)
    steps = (
        replace(first, name="conv1", output="c"),
        replace(second, name="conv2", input="c", output="d"),
        Add("add", "c", "d", "s", (5000, -4000), Requantizer(np.array(1), np.array(13), 60)),
        Mean("mean", "s", "m", (2, 3), True, 36, requantizer_of(1 / 27, plans["m"], bits=18)),
        Apply("flat", "Reshape", "", (Ref("m", True), Ref("shape", False)), (Ref("f", True),)),
        Gemm("gemm", "f", "y", weight, None, requantizer_of(ratio, plans["y"]), scale),
    )
    constants = {"shape": np.array([0, -1])}
    return program_of({"x": ("N", 8, 6, 6)}, steps, plans, constants=constants)


@EXACT
def test_residual_network_runs_without_float(
    target, rng, program_of, grid_of, requantizer_of, mismatches
):
    program = residual_network(rng, program_of, grid_of, requantizer_of)
    codes = rng.integers(0, 256, (4, 8, 6, 6)).astype(np.uint8)
    assert mismatches(program, target, {"x": codes}) == 0
    runs = runtime_graph(ir.to_proto(TARGETS[target](program)).SerializeToString())
    assert runs.float_ops == []
    assert runs.operators["QuantizeLinear"] == runs.operators["DequantizeLinear"] == 1


def test_residual_network_is_converted_to_channels_last(rng, program_of, grid_of, requantizer_of):
    program = residual_network(rng, program_of, grid_of, requantizer_of)
    runs = runtime_graph(ir.to_proto(TARGETS["onnx"](program)).SerializeToString())
    assert runs.operators["com.microsoft.QLinearConv"] == 2
    assert runs.operators["Transpose"] == 2


@pytest.mark.parametrize("axis", [1, -3, -1])
def test_lookups_between_convolutions_leave_no_transposes(
    axis, rng, program_of, grid_of, requantizer_of, mismatches
):
    """conv -> table -> conv -> table a channel -> mean ..., as with Swish and PRelu."""
    program = residual_network(rng, program_of, grid_of, requantizer_of)
    steps, codes = [], dict(program.codes)
    for step in program.steps:
        if isinstance(step, Convolve):
            made = f"{step.output}_linear"
            codes[made] = codes[step.output]
            many = step.output == "d"
            rows = ((2, 16, 6, 6)[axis], 256) if many else 256
            table = rng.integers(0, 256, rows).astype(np.uint8)
            along = axis if many else None
            steps.append(replace(step, output=made))
            steps.append(Lookup(f"{step.name}/table", made, step.output, table, along))
        else:
            steps.append(step)
    program = replace(program, steps=tuple(steps), codes=codes)
    feeds = {"x": rng.integers(0, 256, (4, 8, 6, 6)).astype(np.uint8)}
    assert mismatches(program, "onnx", feeds) == 0
    runs = runtime_graph(ir.to_proto(TARGETS["onnx"](program)).SerializeToString())
    assert runs.operators["Transpose"] == 2


def test_a_sigmoid_away_from_ties_becomes_one_node(program_of, grid_of, mismatches):
    """Over many input scales: exact always, and one node for some scales but not for all."""
    every, y = np.arange(256, dtype=np.uint8)[None], grid_of(1 / 256, 0)
    found = set()
    for scale in np.linspace(0.02, 0.12, 12):
        x = grid_of(scale, 120)
        table = y.quantize(1 / (1 + np.exp(-x.dequantize(every[0]).astype(np.float64))))
        step = Lookup("lookup", "x", "y", table, None, "Sigmoid")
        program = program_of({"x": ("N", 256)}, (step,), {"x": x, "y": y})
        assert mismatches(program, "onnx", {"x": every}) == 0
        operators = {node.op_type for node in TARGETS["onnx"](program).graph}
        found |= operators & {"QLinearSigmoid", "GatherElements"}
    assert found == {"QLinearSigmoid", "GatherElements"}


@pytest.mark.parametrize("changed", ["entry", "tie"])
def test_what_is_not_surely_a_sigmoid_is_looked_up(changed, grid_of):
    x, y = grid_of(0.03, 120), grid_of(1 / 256, 0)
    sigmoid = 1 / (1 + np.exp(-x.dequantize(np.arange(256, dtype=np.uint8)).astype(np.float64)))
    assert is_sigmoid(y.quantize(sigmoid), x, y)
    if changed == "tie":
        y = grid_of(sigmoid[90] / 40.5, 0)
    table = y.quantize(sigmoid)
    table[77] += changed == "entry"
    assert not is_sigmoid(table, x, y)
