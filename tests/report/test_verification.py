"""Verification finds what differs, where, and does not promise equality after a float island."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ptq.grid import Grid
from ptq.integer.flow import reads, writes
from ptq.integer.program import (
    Apply,
    Boundary,
    Convolve,
    Dequantize,
    Lookup,
    Program,
    Quantize,
    Ref,
)
from ptq.pipeline import quantize
from ptq.plan import ActivationPlan
from ptq.recipe import Recipe
from ptq.report.flow import after_islands, makers
from ptq.report.verification import Subject, verify
from ptq.result import Result
from ptq.targets import TARGETS
from ptq.verify import code_names
from tests.small_cnn import SHAPE, small_cnn

GRID = ActivationPlan(Grid(), np.float32(0.1), 128)


def batches(count: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(size=(3, *SHAPE)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def result() -> Result:
    return quantize(small_cnn(), batches(6), Recipe(rounding="nearest"))


def subject(result: Result, target: ir.Model | None = None) -> Subject:
    names = code_names(result.program, "float")
    return Subject(target or result.model, result.program, names, result.float_model)


def test_everything_is_compared_and_equal(result: Result) -> None:
    seen: list[int] = []
    found = verify(subject(result), batches(), progress=seen.append)
    assert seen == [3, 6]
    assert found.passed
    assert found.hidden == ()
    assert {layer.name for layer in found.layers} == set(result.program.codes)
    sizes = {layer.name: layer.codes for layer in found.layers}
    assert sizes["x"] == 6 * 3 * 64
    assert found.codes == sum(sizes.values())
    steps = {layer.name: layer.step for layer in found.layers}
    assert (steps["x"], steps["r"]) == ("Quantize", "Convolve")
    assert all(layer.float_scores is not None for layer in found.layers)


def test_one_wrong_bias_is_found_where_it_is(result: Result) -> None:
    conv = next(s for s in result.program.steps if isinstance(s, Convolve))
    bias = conv.bias.copy()
    bias[2] += 1 << 14
    steps = tuple(replace(s, bias=bias) if s is conv else s for s in result.program.steps)
    wrong = TARGETS["onnx"](replace(result.program, steps=steps), io="float")
    found = verify(subject(result, wrong), batches())
    by_name = {layer.name: layer for layer in found.layers}
    assert not found.passed
    assert by_name["x"].mismatches == 0
    assert 0 < by_name["r"].mismatches <= 6 * 64
    assert by_name["r"].first.startswith("[0, 2, ")
    assert by_name["r"].max_difference > 0
    assert found.outputs[0].mismatches > 0


def test_without_a_float_model_integers_are_compared(result: Result) -> None:
    found = verify(replace(subject(result), float_model=None), batches(1))
    assert found.passed
    assert all(layer.float_scores is None for layer in found.layers)


def test_what_the_target_hides_is_named(result: Result) -> None:
    names = code_names(result.program, "float")
    names["r"] = "elsewhere"
    found = verify(replace(subject(result), code_names=names), batches(1))
    assert found.hidden == ("r",)
    assert found.passed


def island_program() -> Program:
    """z = Lookup(Quantize(Sin(x))) and w = Lookup(Quantize(x)); Sin stays float."""
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    sine = Apply("sin", "Sin", "", (Ref("x", False),), (Ref("s", False),), (), "no reason")
    return Program(
        inputs=(Boundary("x", ir.DataType.FLOAT, ("N", 4)),),
        outputs=tuple(Boundary(n, ir.DataType.FLOAT, None) for n in "zw"),
        steps=(
            Quantize("qx", "x"),
            sine,
            Quantize("qs", "s"),
            Lookup("lz", "s", "z", table, function="Flip"),
            Lookup("lw", "x", "w", table),
            Dequantize("dz", "z"),
            Dequantize("dw", "w"),
        ),
        codes=dict.fromkeys("xszw", GRID),
    )


def test_flow_follows_the_island() -> None:
    program = island_program()
    assert after_islands(program) == {"s", "z"}
    assert makers(program) == {
        "x": "Quantize", "s": "Quantize", "z": "Lookup(Flip)", "w": "Lookup",
    }  # fmt: skip
    made: set[Ref] = {Ref("x", False)}
    for step in program.steps:
        assert set(reads(step)) <= made, step
        made |= set(writes(step))


def test_differences_after_an_island_are_counted_apart() -> None:
    program = island_program()
    cosine = replace(program.steps[1], op_type="Cos")
    other = replace(program, steps=(program.steps[0], cosine, *program.steps[2:]))
    target = TARGETS["onnx"](other, io="float")
    data = [{"x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)}]
    found = verify(Subject(target, program, code_names(program, "float")), data)
    assert found.passed
    assert found.island_mismatches > 0
    assert {layer.name for layer in found.layers if layer.mismatches} == {"s", "z"}


def test_a_folder_is_all_that_verify_needs(result: Result, tmp_path: Path) -> None:
    from ptq.report.artifact import save
    from ptq.verify import VerifyOptions, verify_file

    save(result, tmp_path / "q.onnx")
    options = VerifyOptions(batches(3), samples=5, batch=2)
    found = verify_file(tmp_path / "q.onnx", options)
    assert found.passed
    assert found.samples == 5
