"""The pass: which weights get which grid, by family, and that every CPU computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ptq
from ptq.integer.reference import Reference
from ptq.pipeline import Result
from ptq.plan import Plan
from ptq.targets import TARGETS

DIGITS = Path(__file__).parents[2] / "calib_data"
MODEL, SAMPLES = DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz"


BASE = ptq.Recipe.preset("w3a8").replace(samples=16)


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    families = ("uniform", "power", "powerquant", "auto")
    found = {f: ptq.quantize(MODEL, SAMPLES, BASE.replace(grid=f)) for f in families}
    channels = BASE.replace(grid="power", exponents="channel")
    return found | {"channels": ptq.quantize(MODEL, SAMPLES, channels)}


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
    free = ptq.quantize(MODEL, SAMPLES, BASE.replace(grid="power", cpu="vnni"))
    assert {grid.end for grid in free.plan.grids.values()} == {127}


def test_channels_may_have_exponents_of_their_own(results: dict[str, Result]) -> None:
    weights = results["channels"].plan.weights.values()
    inner = [weight for weight in weights if weight.grid.bits == 3]
    assert all(weight.powers is not None for weight in inner)
    assert any(len(set(weight.powers)) > 1 for weight in inner if weight.powers is not None)


def test_a_plan_with_exponents_per_channel_is_read_back(
    results: dict[str, Result], tmp_path: Path
) -> None:
    plan = results["channels"].plan
    plan.save(tmp_path / "plan.safetensors")
    back = Plan.load(tmp_path / "plan.safetensors")
    assert back.grids == plan.grids
    for name, weight in plan.weights.items():
        np.testing.assert_array_equal(back.weights[name].decode(), weight.decode())


@pytest.mark.parametrize("target", ["onnx", "onnx-strict"])
@pytest.mark.parametrize("family", ["power", "channels"])
def test_power_grids_run_without_a_mismatch(
    results: dict[str, Result], family: str, target: str
) -> None:
    import onnx_ir as ir
    import onnxruntime as ort

    program = results[family].program
    x = np.load(DIGITS / "digits_eval.npz")["image"][:8]
    model = ir.to_proto(TARGETS[target](program, io="float")).SerializeToString()
    found = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": x})
    wanted = Reference(program).run({"image": x})
    np.testing.assert_array_equal(found[0], next(iter(wanted.values())))
