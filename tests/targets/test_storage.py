"""Weights of at most six bits: packed on disk, plain int8 once loaded, decoded exactly."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from ptq.grid import Grid
from ptq.integer.arithmetic import onnx_ratio
from ptq.integer.program import Convolve, Gemm
from ptq.plan import WeightPlan
from ptq.targets import TARGETS
from ptq.targets.inspect_runtime import runtime_graph

FAST = {"com.microsoft.QLinearConv", "Transpose", "QuantizeLinear", "DequantizeLinear"}

# name: (grid, zero points: None = the middle of the grid, block size)
GRIDS = {
    "4 bits, symmetric": (Grid(4), None, 0),
    "4 bits, one zero point": (Grid(4), [3], 0),
    "4 bits, per channel": (Grid(4), range(16), 0),
    "4 bits, half": (Grid(4, half=True), None, 0),
    "4 bits, half, per channel": (Grid(4, half=True), range(4, 12), 0),
    "4 bits, power": (Grid(4, power=1.5), None, 0),
    "4 bits, power, per channel": (Grid(4, power=1.5), range(5, 11), 0),
    "4 bits, blocks": (Grid(4), None, 9),
    "4 bits, blocks, per channel": (Grid(4), range(16), 9),
    "4 bits, ragged blocks": (Grid(4, power=1.25), range(6, 10), 32),
    "3 bits, per channel": (Grid(3), range(8), 0),
    "3 bits, power": (Grid(3, power=2.0), None, 0),
    "6 bits, symmetric": (Grid(6), None, 0),
    "6 bits, per channel": (Grid(6), range(64), 0),
    "6 bits, half, per channel": (Grid(6, half=True), range(24, 40), 0),
    "6 bits, power": (Grid(6, power=1.2), None, 0),
    "5 bits, per channel": (Grid(5), range(32), 0),
    "5 bits, half": (Grid(5, half=True), None, 0),
    "5 bits, power, per channel": (Grid(5, power=1.1), range(14, 18), 0),
    "5 bits, blocks": (Grid(5), range(32), 9),
    "2 bits, symmetric": (Grid(2), None, 0),
    "2 bits, per channel": (Grid(2), range(4), 0),
    "2 bits, half": (Grid(2, half=True), None, 0),
    "2 bits, power": (Grid(2, power=1.5), range(1, 3), 0),
    "2 bits, blocks": (Grid(2), range(4), 24),
}


def weight_plan(rng, name, shape, axis):
    """Random codes of a grid of GRIDS, with the first and last code of every channel used."""
    grid, zeros, block = GRIDS[name]
    channels, length = shape[axis], int(np.prod(shape)) // shape[axis]
    zero_point = np.resize([grid.middle] if zeros is None else list(zeros), channels)
    codes = rng.integers(0, grid.size, (channels, length)).astype(np.uint8)
    codes[:, 0], codes[:, 1] = 0, grid.size - 1
    rest = tuple(s for a, s in enumerate(shape) if a != axis)
    codes = np.moveaxis(codes.reshape(channels, *rest), 0, axis)
    multiplier = None
    if block:
        limit = 127 // int(np.abs(grid.tables(zero_point).astype(int)).max())
        sizes = (channels, -(-length // block))
        multiplier = rng.integers(1, max(limit, 1) + 1, sizes).astype(np.int8)
    scale = np.full(channels, 1e-3, np.float32)
    return WeightPlan(grid, axis, scale, zero_point.astype(np.int64), codes, block, multiplier)


@pytest.fixture
def convolution(rng, program_of, grid_of, requantizer_of):
    """Program of one 3x3 convolution with weights stored as GRIDS says."""

    def make(name, shape=(32, 16, 3, 3)):
        stored = weight_plan(rng, name, shape, 0)
        x, y = grid_of(0.02, 120), grid_of(0.05, 128)
        step = Convolve(
            "conv",
            "x",
            "y",
            stored.decode(),
            rng.integers(-300, 300, shape[0]).astype(np.int32),
            requantizer_of(onnx_ratio(x.scale, stored.scale, y.scale), y),
            strides=(1, 1),
            dilations=(1, 1),
            pads=(1, 1, 1, 1),
            groups=1,
            weight_scale=stored.scale,
            stored=stored,
        )
        return program_of({"x": ("N", shape[1], 8, 8)}, (step,), {"x": x, "y": y})

    return make


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
@pytest.mark.parametrize("name", GRIDS)
def test_convolution_of_packed_weights(name, target, convolution, rng, mismatches):
    codes = rng.integers(0, 256, (2, 16, 8, 8)).astype(np.uint8)
    assert mismatches(convolution(name), target, {"x": codes}) == 0


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", GRIDS)
def test_gemm_of_packed_weights(
    name, axis, target, rng, program_of, grid_of, requantizer_of, mismatches
):
    stored = weight_plan(rng, name, (40, 48) if axis == 0 else (48, 40), axis)
    weight = stored.decode().T if axis == 0 else stored.decode()
    x, y = grid_of(0.02, 120), grid_of(0.05, 128)
    ratio = requantizer_of(onnx_ratio(x.scale, stored.scale, y.scale), y)
    bias = rng.integers(-300, 300, 40).astype(np.int32)
    step = Gemm("gemm", "x", "y", weight, bias, ratio, stored.scale, stored, axis == 0)
    program = program_of({"x": ("N", 48)}, (step,), {"x": x, "y": y})
    assert mismatches(program, target, {"x": rng.integers(0, 256, (5, 48)).astype(np.uint8)}) == 0


@pytest.mark.parametrize("name", GRIDS)
def test_decode_folds_when_the_model_is_loaded(name, convolution):
    model = ir.to_proto(TARGETS["onnx"](convolution(name))).SerializeToString()
    runs = runtime_graph(model)
    assert set(runs.operators) == FAST
    assert runs.float_ops == []
    held = runs.weight_bytes.get("INT8", 0) + runs.weight_bytes.get("UINT8", 0)
    assert held >= 32 * 16 * 9
    assert not {"INT4", "UINT4", "INT2", "UINT2"} & set(runs.weight_bytes)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("6 bits, per channel", 0.75),
        ("5 bits, half", 0.75),
        ("4 bits, symmetric", 0.5),
        ("3 bits, per channel", 0.5),
        ("2 bits, per channel", 0.25),
    ],
)
def test_packed_weights_take_their_width_on_disk(name, share, convolution):
    program = convolution(name, (128, 128, 3, 3))
    packed = len(ir.to_proto(TARGETS["onnx"](program)).SerializeToString())
    steps = [replace(s, stored=None) if isinstance(s, Convolve) else s for s in program.steps]
    plain = replace(program, steps=tuple(steps))
    assert packed < (share + 0.04) * len(ir.to_proto(TARGETS["onnx"](plain)).SerializeToString())


@pytest.mark.parametrize(
    ("largest", "dtype"), [(64, ir.DataType.INT8), (65, ir.DataType.UINT8)], ids=["safe", "unsafe"]
)
def test_eight_bits_are_plain_and_signed_where_pairs_do_not_saturate(largest, dtype, convolution):
    program = convolution("4 bits, symmetric")
    step = next(s for s in program.steps if isinstance(s, Convolve))
    codes = np.full_like(step.stored.codes, 128 + largest)
    wide = replace(step.stored, grid=Grid(8), zero_point=np.full(32, 128), codes=codes)
    steps = tuple(
        replace(s, stored=wide, weight=wide.decode()) if isinstance(s, Convolve) else s
        for s in program.steps
    )
    model = TARGETS["onnx"](replace(program, steps=steps))
    assert model.graph.initializers["w1"].const_value.dtype == dtype
    decoding = {"Sub", "Gather", "Mul", "Add"}
    assert not decoding & {n.op_type for n in model.graph}


def test_a_weight_too_small_to_pack_is_plain_int8(convolution):
    model = TARGETS["onnx"](convolution("4 bits, per channel", (8, 1, 3, 3)))
    assert model.graph.initializers["w1"].const_value.dtype == ir.DataType.INT8


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(32767, ir.DataType.INT16), (32768, ir.DataType.INT32), (127, ir.DataType.INT8)],
)
def test_biases_are_stored_as_narrow_as_they_are(largest, dtype, convolution, rng, mismatches):
    program = convolution("6 bits, symmetric")
    bias = np.arange(-32, 0, dtype=np.int32)
    bias[3] = largest
    steps = [replace(s, bias=bias) if isinstance(s, Convolve) else s for s in program.steps]
    program = replace(program, steps=tuple(steps))
    model = TARGETS["onnx"](program)
    assert model.graph.initializers["b1"].const_value.dtype == dtype
    codes = rng.integers(0, 256, (2, 16, 8, 8)).astype(np.uint8)
    assert mismatches(program, "onnx", {"x": codes}) == 0
