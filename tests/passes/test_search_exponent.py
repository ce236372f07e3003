"""The pass: which weights get which grid, by family, and that every CPU computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ptq
from ptq.integer.reference import Reference
from ptq.plan import Plan
from ptq.result import Result
from ptq.targets import TARGETS

DIGITS = Path(__file__).parents[2] / "calib_data"
MODEL, SAMPLES = DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz"


BASE = ptq.Recipe.preset("w3a8").replace(samples=16, effort="fast")


class Results(dict[str, Result]):
    """The digits network on each family of grids, quantised when first asked for."""

    def __missing__(self, family: str) -> Result:
        choice = {"grid": "power", "exponents": "channel"} if family == "channels" else None
        recipe = BASE.replace(**(choice or {"grid": family}))
        self[family] = ptq.quantize(MODEL, SAMPLES, recipe)
        return self[family]


@pytest.fixture(scope="module")
def results() -> Results:
    return Results()


def powers(result: Result) -> list[float]:
    return [result.plan.weights[unit.name].grid.power for unit in result.outline.weighted]


def test_uniform_leaves_the_plan_without_grids(results: Results) -> None:
    assert not results["uniform"].plan.grids
    assert set(powers(results["uniform"])) == {1.0}


def test_power_gives_every_inner_layer_an_exponent_of_its_own(results: Results) -> None:
    found = powers(results["power"])
    assert found[0] == found[-1] == 1.0, "the first and last layer have 8 bits"
    assert len(set(found[1:-1])) > 1


def test_powerquant_has_one_exponent_and_symmetric_grids(results: Results) -> None:
    grids = set(results["powerquant"].plan.grids.values())
    assert len({grid.power for grid in grids}) == 1
    assert all(grid.symmetric for grid in grids)


def test_auto_takes_the_grid_that_costs_the_layer_less(results: Results) -> None:
    allowed = [{1.0, p} for p in powers(results["power"])]
    assert all(p in pair for p, pair in zip(powers(results["auto"]), allowed, strict=True))


def test_tables_end_where_no_cpu_saturates_and_depthwise_ones_at_127(
    results: Results,
) -> None:
    result = results["power"]
    assert all(certificate.pair_safe for certificate in result.program.certificates)
    ends = {grid.end for grid in result.plan.grids.values()}
    assert ends == {64, 127}, "the digits network has both kinds of convolution"
    free = ptq.quantize(MODEL, SAMPLES, BASE.replace(grid="power", cpu="vnni"))
    assert {grid.end for grid in free.plan.grids.values()} == {127}


def test_channels_may_have_exponents_of_their_own(results: Results) -> None:
    weights = results["channels"].plan.weights.values()
    inner = [weight for weight in weights if weight.grid.bits == 3]
    assert all(weight.powers is not None for weight in inner)
    assert any(len(set(weight.powers)) > 1 for weight in inner if weight.powers is not None)


def test_a_plan_with_exponents_per_channel_is_read_back(results: Results, tmp_path: Path) -> None:
    plan = results["channels"].plan
    plan.save(tmp_path / "plan.safetensors")
    back = Plan.load(tmp_path / "plan.safetensors")
    assert back.grids == plan.grids
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(back.weights[name].decode(), weight.decode())


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
@pytest.mark.parametrize("family", ["power", "channels"])
def test_power_grids_run_without_a_mismatch(results: Results, family: str, target: str) -> None:
    import onnx_ir as ir
    import onnxruntime as ort

    program = results[family].program
    x = np.load(DIGITS / "digits_eval.npz")["image"][:8]
    model = ir.to_proto(TARGETS[target](program, io="float")).SerializeToString()
    found = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": x})
    wanted = Reference(program).run({"image": x})
    np.testing.assert_array_equal(found[0], next(iter(wanted.values())))
