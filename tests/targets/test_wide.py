"""16-bit codes in target onnx: float64 between the steps that compute in it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Add, Program
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
    assert len(np.unique(wanted["y"])) > 9999


def test_codes_at_the_boundary_are_integers(program_of, grid_of):
    model = TARGETS["onnx"](two_sums(program_of, grid_of, ("y", "s")), io="integer")
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.UINT16}


def test_numbers_beside_rows_have_their_axes(program_of, grid_of):
    from ptq.targets.build import Builder
    from ptq.targets.rows import beside

    b = Builder(two_sums(program_of, grid_of, ("y",)), "float")
    assert beside(b, b.inputs[0], 3.0, np.float64).shape == ir.Shape([1, 1])
    assert beside(b, ir.Value(name="free"), 3.0, np.float64).shape == ir.Shape([])
