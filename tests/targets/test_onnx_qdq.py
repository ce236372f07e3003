"""Target `onnx-qdq`: onnxruntime fuses it back to int8; what is exact, and what may be one off."""

import numpy as np
import onnx_ir as ir
import pytest

from ptq.grid import Grid
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
    Ref,
    Softmax,
)
from ptq.integer.reference import Reference
from ptq.plan import WeightPlan
from ptq.targets import TARGETS
from ptq.targets.inspect_runtime import runtime_graph


def fused(program):
    """What onnxruntime runs between the boundaries: the set of its operators."""
    runs = runtime_graph(ir.to_proto(TARGETS["onnx-qdq"](program)).SerializeToString())
    assert runs.float_ops == []
    return set(runs.operators) - {"QuantizeLinear", "DequantizeLinear", "Transpose"}


def largest_difference(program, feeds, run):
    """In codes, between the target and the reference."""
    raw = {name: program.codes[name].dequantize(codes) for name, codes in feeds.items()}
    wanted = Reference(program).run_codes(raw)["y"].astype(int)
    return np.abs(run(TARGETS["onnx-qdq"](program, io="integer"), feeds)["y"] - wanted).max()


@pytest.fixture
def layer(rng, program_of, grid_of, requantizer_of):
    """Program of one Convolve or Gemm with nudged scales, packed at `bits`."""

    def make(kind, bits, y=None, shape=("N", 16)):
        x, y = grid_of(0.02, 120), y or grid_of(0.05, 128)
        sizes = (24, 16, 3, 3) if kind == "conv" else (24, 16)
        grid = Grid(bits)
        zero = rng.integers(0, grid.size, 24) if bits < 8 else np.full(24, 128)
        limit = exact_shift(y.zero_point, y.low, y.high)
        scale = nudge_scales(
            np.exp(rng.uniform(-1, 1, 24)) / grid.size / 8, x.scale, y.scale, limit
        )
        safe = (64, 193) if bits == 8 else (0, grid.size)  # int8 pairs that saturate nowhere
        codes = rng.integers(*safe, sizes).astype(np.uint8)
        stored = WeightPlan(grid, 0, scale, zero, codes)
        bias = rng.integers(-300, 300, 24).astype(np.int32)
        ratio = requantizer_of(onnx_ratio(x.scale, scale, y.scale), y)
        if kind == "conv":
            ones = (1, 1)
            fields = {"strides": ones, "dilations": ones, "pads": (1, 1, 1, 1), "groups": 1}
            step = Convolve(
                "conv", "x", "y", stored.decode(), bias, ratio, **fields, weight_scale=scale,
                stored=stored,
            )  # fmt: skip
            return program_of({"x": ("N", 16, 6, 6)}, (step,), {"x": x, "y": y})
        step = Gemm("gemm", "x", "y", stored.decode().T, bias, ratio, scale, stored, True)
        return program_of({"x": shape}, (step,), {"x": x, "y": y})

    return make


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_convolution_is_exact_and_runs_int8(bits, layer, rng, mismatches):
    program = layer("conv", bits)
    codes = rng.integers(0, 256, (3, 16, 6, 6)).astype(np.uint8)
    assert mismatches(program, "onnx-qdq", {"x": codes}) == 0
    assert fused(program) == {"com.microsoft.QLinearConv"}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_gemm_is_exact_and_runs_int8(bits, layer, rng, mismatches):
    program = layer("gemm", bits)
    codes = rng.integers(0, 256, (3, 16)).astype(np.uint8)
    assert mismatches(program, "onnx-qdq", {"x": codes}) == 0
    assert fused(program) == {"com.microsoft.QGemm"}


def test_gemm_of_many_dimensions_is_exact_and_runs_int8(layer, rng, mismatches):
    program = layer("gemm", 4, shape=("N", "T", 16))
    codes = rng.integers(0, 256, (2, 3, 16)).astype(np.uint8)
    assert mismatches(program, "onnx-qdq", {"x": codes}) == 0
    assert fused(program) <= {"com.microsoft.QGemm", "Reshape", "Shape", "Concat", "Slice"}


def test_narrow_saturation_is_exact_and_runs_int8(layer, grid_of, rng, mismatches):
    program = layer("conv", 4, grid_of(0.05, 20, 20, 99))
    codes = rng.integers(0, 256, (3, 16, 6, 6)).astype(np.uint8)
    assert mismatches(program, "onnx-qdq", {"x": codes}) == 0
    assert fused(program) == {"com.microsoft.QLinearConv", "Clip"}


@pytest.mark.parametrize("function", ["Sigmoid", "requantize"])
def test_lookup_is_exact(function, rng, program_of, grid_of, mismatches):
    x, y = grid_of(0.04, 101), grid_of(0.07, 100, 8, 200)
    every = np.arange(256, dtype=np.uint8)
    values = x.dequantize(every)
    table = y.quantize(values if function == "requantize" else np.tanh(values))
    step = Lookup("lookup", "x", "y", table, None, function)
    program = program_of({"x": ("N", 256)}, (step,), {"x": x, "y": y})
    assert mismatches(program, "onnx-qdq", {"x": every[None]}) == 0


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes"),
    [
        ("MaxPool", {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Reshape", {"s": np.array([0, -1])}, {}),
        ("Transpose", {}, {"perm": [0, 2, 3, 1]}),
        ("Resize", {"r": None, "s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}),
        ("Pad", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.array(5, np.uint8)}, {}),
        ("Slice", {"a": np.array([1]), "b": np.array([3]), "c": np.array([1])}, {}),
    ],
)
def test_movement_is_exact_and_runs_on_codes(
    op_type, operands, attributes, rng, program_of, grid_of, mismatches
):
    refs = [None if v is None else Ref(k, False) for k, v in operands.items()]
    attrs = tuple(ir.convenience.convert_attributes(attributes))
    step = Apply("m", op_type, "", (Ref("x", True), *refs), (Ref("y", True),), attrs)
    plans = {"x": grid_of(0.04, 101), "y": grid_of(0.04, 101)}
    constants = {k: v for k, v in operands.items() if v is not None}
    program = program_of({"x": ("N", 4, 6, 6)}, (step,), plans, constants=constants)
    codes = rng.integers(0, 256, (2, 4, 6, 6)).astype(np.uint8)
    assert mismatches(program, "onnx-qdq", {"x": codes}) == 0
    assert fused(program) <= {op_type}


def rounded(program_of, requantizer_of, plans, kind):
    """Program of one step whose real ratio is not a short one."""
    a, b, y = plans["a"], plans["b"], plans["y"]
    shape = {"a": ("N", 6, 8, 8), "b": ("N", 6, 8, 8)}
    factors = [round(float(p.scale / y.scale) * 2**12) for p in (a, b)]
    common = Requantizer(np.array(1), np.array(12), y.zero_point)
    product = requantizer_of(float(a.scale) * float(b.scale) / float(y.scale), y, spare_bits=1)
    mean = requantizer_of(a.scale / y.scale / 64, y, bits=18)
    channels = requantizer_of(a.scale / y.scale / 6, y, bits=20)
    total = requantizer_of(a.scale / y.scale, y, bits=20)
    steps = {
        "add": Add("add", "a", "b", "y", (factors[0], factors[1]), common),
        "subtract": Add("sub", "a", "b", "y", (factors[0], -factors[1]), common),
        "multiply": Multiply("mul", "a", "b", "y", product),
        "matmul": MatMul("matmul", "a", "b", "y", product),
        "mean": Mean("mean", "a", "y", (2, 3), True, 64, mean),
        "channel_mean": Mean("mean", "a", "y", (1,), True, 6, channels),
        "sum": Mean("sum", "a", "y", (1,), True, 6, total),
    }
    used = shape if kind in ("add", "subtract", "multiply", "matmul") else {"a": shape["a"]}
    return program_of(used, (steps[kind],), plans)


FUSED = {
    "add": "com.microsoft.QLinearAdd",
    "multiply": "com.microsoft.QLinearMul",
    "matmul": "QLinearMatMul",
    "mean": "com.microsoft.QLinearGlobalAveragePool",
}


@pytest.fixture
def pair(rng, grid_of):
    """Grids of two operands and a result, and codes for the operands."""
    plans = {"a": grid_of(0.037, 110), "b": grid_of(0.021, 90), "y": grid_of(0.061, 120)}
    return plans, {n: rng.integers(0, 256, (2, 6, 8, 8)).astype(np.uint8) for n in "ab"}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_arithmetic_is_exact(kind, pair, program_of, requantizer_of, mismatches):
    plans, feeds = pair
    program = rounded(program_of, requantizer_of, plans, kind)
    feeds = {boundary.name: feeds[boundary.name] for boundary in program.inputs}
    assert mismatches(program, "onnx-qdq", feeds) == 0
    assert fused(program) == {FUSED[kind]}


@pytest.mark.parametrize("kind", ["subtract", "sum", "channel_mean"])
def test_unfused_arithmetic_is_at_most_one_code_off(kind, pair, program_of, requantizer_of, run):
    plans, feeds = pair
    program = rounded(program_of, requantizer_of, plans, kind)
    feeds = {boundary.name: feeds[boundary.name] for boundary in program.inputs}
    assert largest_difference(program, feeds, run) <= 1


def test_softmax_is_at_most_one_code_off(rng, program_of, grid_of, run):
    plans = {"x": grid_of(0.04, 101), "y": grid_of(1 / 256, 0)}
    table = np.rint(2.0**15 * np.exp(-0.04 * np.arange(256))).astype(np.int32)
    step = Softmax("softmax", "x", "y", -1, table, 256, 255)
    program = program_of({"x": ("N", 10)}, (step,), plans)
    codes = rng.integers(0, 256, (200, 10)).astype(np.uint8)
    assert largest_difference(program, {"x": codes}, run) <= 1
