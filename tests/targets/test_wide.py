"""16-bit codes in target onnx: float64 between the steps that compute in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from ptq.execute.taps import MOVED, tapped
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Dequantize, Gemm, Program
from ptq.integer.reference import Reference
from ptq.targets import TARGETS

TOP = 2**16 - 1


def two_sums(program_of, grid_of, outputs: tuple[str, ...]) -> Program:
    """s = a + b and y = s + a, both in 16 bits."""
    wide = Requantizer(np.array(1), np.array(3), 32768, 0, TOP)
    codes = {"a": grid_of(0.1, 7), "b": grid_of(0.1, 250)}
    codes |= {name: grid_of(0.1, 32768, 0, TOP) for name in ("s", "y")}
    steps = (
        Add("first", "a", "b", "s", (999, -500), wide),
        Add("second", "s", "a", "y", (9, 5), wide),
    )
    return program_of({"a": (256, 1), "b": (1, 256)}, steps, codes, outputs=outputs)


@pytest.mark.parametrize("outputs", [("y",), ("y", "s")])
def test_codes_become_integers_only_where_something_reads_them(outputs, program_of, grid_of, run):
    program = two_sums(program_of, grid_of, outputs)
    model = TARGETS["onnx"](program, io="float")
    casts = [node for node in model.graph if node.op_type == "Cast"]
    integers = [c for c in casts if c.attributes["to"].as_int() == ir.DataType.UINT16]
    assert len(integers) == len(outputs)
    every = np.arange(256, dtype=np.uint8)
    feeds = {
        "a": program.codes["a"].dequantize(every[:, None]),
        "b": program.codes["b"].dequantize(every[None, :]),
    }
    wanted, found = Reference(program).run(feeds), run(model, feeds)
    assert all(np.array_equal(found[name], wanted[name]) for name in outputs)
    assert len(np.unique(wanted["y"])) > 5099


def sum_of_products(rng, program_of, grid_of, bias_bits: int) -> Program:
    """y = x @ V + x @ W in 16 bits; some are halfway between codes, some beyond their ends."""
    codes = {"x": grid_of(0.1, 100), "a": grid_of(0.1, 30000, 0, TOP)}
    codes |= {"b": grid_of(0.1, 1000, 0, TOP), "y": grid_of(0.1, 31000, 0, TOP)}
    shift = np.array([1, 3, 8]) + max(bias_bits - 15, 0)

    def product(output: str, zero_point: int) -> Gemm:
        rounding = Requantizer(np.array([1, 3, 4000]), shift, zero_point, 0, TOP)
        weight = rng.integers(-64, 64, (8, 3)).astype(np.int8)  # no pair saturates
        bias = (rng.integers(-99, 99, 3) + 2**bias_bits).astype(np.int32)
        return Gemm(output, "x", output, weight, bias, rounding, np.ones(3, np.float32))

    exact = Requantizer(np.array(1), np.array(0), 31000, 0, TOP)
    steps = product("a", 30000), product("b", 1000), Add("sum", "a", "b", "y", (1, 1), exact)
    return program_of({"x": ("N", 8)}, steps, codes)


@pytest.mark.parametrize("bias_bits", [10, 25])
def test_operands_of_a_sum_are_rounded_by_moving_them(bias_bits, rng, program_of, grid_of, run):
    program = sum_of_products(rng, program_of, grid_of, bias_bits)
    model = TARGETS["onnx"](program, io="float")
    operators = {node.op_type for node in model.graph}
    assert "Round" not in operators
    assert ("MatMulIntegerToFloat" in operators) == (bias_bits < 24)
    assert ("MatMulInteger" in operators) == (bias_bits > 24)
    every = rng.integers(0, 256, (999, 8)).astype(np.uint8)
    feeds = {"x": program.codes["x"].dequantize(every)}
    wanted = Reference(program).run_codes(feeds)
    found = run(tapped(model, [f"{name}_quantized" for name in "aby"]), feeds)
    for name in "aby":
        np.testing.assert_array_equal(found[f"{name}_quantized"], wanted[name], name)
    assert len(np.unique(wanted["y"])) > 50
    assert np.array_equal(run(model, feeds)["y"], Reference(program).run(feeds)["y"])


def test_what_others_read_is_not_moved(rng, program_of, grid_of):
    program = sum_of_products(rng, program_of, grid_of, 10)
    assert MOVED in TARGETS["onnx"](program).metadata_props
    assert MOVED not in TARGETS["onnx-strict"](program).metadata_props
    seen = replace(program, outputs=(*program.outputs, replace(program.outputs[0], name="a")))
    seen = replace(seen, steps=(*program.steps, Dequantize("a/dequantize", "a")))
    assert MOVED not in TARGETS["onnx"](seen).metadata_props


def test_codes_at_the_boundary_are_integers(program_of, grid_of):
    model = TARGETS["onnx"](two_sums(program_of, grid_of, ("y", "s")), io="integer")
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.UINT16}


def test_numbers_beside_rows_have_their_axes(program_of, grid_of):
    from ptq.targets.build import Builder
    from ptq.targets.rows import beside

    b = Builder(two_sums(program_of, grid_of, ("y",)), "float")
    assert beside(b, b.inputs[0], 3.0, np.float64).shape == ir.Shape([1, 1])
    assert beside(b, ir.Value(name="free"), 3.0, np.float64).shape == ir.Shape([])
