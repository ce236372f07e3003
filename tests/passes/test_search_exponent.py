"""The pass: which weights get which grid, by family, and that every CPU computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ptq
from ptq.integer.reference import Reference
from ptq.pipeline import Result
from ptq.targets import TARGETS

DIGITS = Path(__file__).parents[2] / "calib_data"
MODEL, SAMPLES = DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz"


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    families = ("uniform", "power", "powerquant", "auto")
    base = ptq.Recipe.preset("w3a8").replace(samples=16)
    return {f: ptq.quantize(MODEL, SAMPLES, base.replace(grid=f)) for f in families}


def powers(result: Result) -> list[float]:
    return [result.plan.weights[unit.name].grid.power for unit in result.outline.weighted]


def test_uniform_leaves_the_plan_without_grids(results: dict[str, Result]) -> None:
    assert not results["uniform"].plan.grids
    assert set(powers(results["uniform"])) == {1.0}


def test_power_gives_every_inner_layer_an_exponent_of_its_own(results: dict[str, Result]) -> None:
    found = powers(results["power"])
    assert found[0] == found[-1] == 1.0, "the first and last layer have 8 bits"
    assert len(set(found[1:-1])) > 1


def test_powerquant_has_one_exponent_and_symmetric_grids(results: dict[str, Result]) -> None:
    grids = set(results["powerquant"].plan.grids.values())
    assert len({grid.power for grid in grids}) == 1
    assert all(grid.symmetric for grid in grids)


def test_auto_takes_the_grid_that_costs_the_layer_less(results: dict[str, Result]) -> None:
    allowed = [{1.0, p} for p in powers(results["power"])]
    assert all(p in pair for p, pair in zip(powers(results["auto"]), allowed, strict=True))


def test_tables_end_where_no_cpu_saturates_and_depthwise_ones_at_127(
    results: dict[str, Result],
) -> None:
    result = results["power"]
    assert all(certificate.pair_safe for certificate in result.program.certificates)
    ends = {grid.end for grid in result.plan.grids.values()}
    assert ends == {64, 127}, "the digits network has both kinds of convolution"
    vnni = ptq.Recipe.preset("w3a8").replace(samples=16, grid="power", cpu="vnni")
    free = ptq.quantize(MODEL, SAMPLES, vnni)
    assert {grid.end for grid in free.plan.grids.values()} == {127}


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
def test_power_grids_run_without_a_mismatch(results: dict[str, Result], target: str) -> None:
    import onnx_ir as ir
    import onnxruntime as ort

    program = results["power"].program
    x = np.load(DIGITS / "digits_eval.npz")["image"][:8]
    model = ir.to_proto(TARGETS[target](program, io="float")).SerializeToString()
    found = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": x})
    wanted = Reference(program).run({"image": x})
    np.testing.assert_array_equal(found[0], next(iter(wanted.values())))
