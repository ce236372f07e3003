"""`ptq.quantize_weights` and `ptq quantize --precision w4a16` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ptq
from ptq.cli import main
from ptq.errors import RecipeError, UnsupportedModelError
from ptq.report.session import open_session
from tests.weights_only.networks import gated_network, inputs, saved

W4 = ptq.Recipe.preset("w4a16").replace(group_size=16)


def sqnr(result: ptq.WeightsResult, x: np.ndarray) -> float:
    """Of the output, dB."""
    wanted = open_session(result.float_model, threads=1).run({"x": x})["y"].astype(np.float64)
    found = open_session(result.model, threads=1).run({"x": x})["y"]
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


@pytest.fixture(scope="module")
def result() -> ptq.WeightsResult:
    return ptq.quantize_weights(gated_network(), [inputs(512)], W4)


def test_more_bits_and_second_order_rounding_are_nearer(result: ptq.WeightsResult) -> None:
    held_out = inputs(256, seed=2)
    low, nearest = (
        sqnr(ptq.quantize_weights(gated_network(), [inputs(512)], W4.replace(**change)), held_out)
        for change in ({"weight_bits": 2}, {"rounding": "nearest"})
    )
    assert low + 6 < nearest < sqnr(result, held_out) - 1


def test_states_in_files_and_another_run_give_the_same_file(
    result: ptq.WeightsResult, tmp_path: Path
) -> None:
    result.save(tmp_path / "a.onnx")
    again = ptq.quantize_weights(gated_network(), [inputs(512)], W4, memory_bytes=1)
    again.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_blocks_are_learned_where_that_is_asked_for(result: ptq.WeightsResult) -> None:
    held_out, recipe = inputs(256, seed=2), W4.replace(weight_bits=2)
    plain, learned = (
        ptq.quantize_weights(gated_network(), [inputs(512)], recipe.replace(effort=effort))
        for effort in ("default", "best")
    )
    assert not any(outcome.learned for outcome in plain.outcomes.values())
    assert any(outcome.learned for outcome in learned.outcomes.values())
    assert sqnr(learned, held_out) > sqnr(plain, held_out) - 0.1


def test_without_samples_weights_are_rounded_alone() -> None:
    result = ptq.quantize_weights(gated_network(), None, W4)
    assert result.samples == 0
    assert sqnr(result, inputs(64)) > 15


def test_models_of_half_precision_stay_so(tmp_path: Path) -> None:
    result = ptq.quantize_weights(
        gated_network(dtype=np.float16), [inputs(64).astype(np.float16)], W4
    )
    result.save(tmp_path / "m.onnx")
    types = {t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8}
    assert sqnr(result, inputs(64).astype(np.float16)) > 15


def test_int8_computation_is_what_onnxruntime_is_told() -> None:
    result = ptq.quantize_weights(gated_network(), None, W4.replace(compute="int8"))
    levels = {
        node.attributes["accuracy_level"].as_int()
        for node in result.model.graph
        if node.op_type == "MatMulNBits"
    }
    assert levels == {4}
    assert sqnr(result, inputs(64)) > 15


def test_recipes_go_to_the_function_that_they_are_for() -> None:
    with pytest.raises(RecipeError, match="quantize_weights"):
        ptq.quantize(gated_network(), [inputs(8)], W4)
    with pytest.raises(RecipeError, match=r"ptq\.quantize"):
        ptq.quantize_weights(gated_network(), [inputs(8)], ptq.Recipe.preset("w4a8"))


@pytest.mark.parametrize(
    "change", [{"grid": "power"}, {"target": "onnx-qdq"}, {"io": "integer"}, {"weight_bits": 5}]
)
def test_what_weights_only_cannot_have_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="MatMulNBits|float|onnxruntime"):
        W4.replace(**change)


@pytest.mark.parametrize("change", [{"weight_bits": 8}, {"grid": "power"}])
def test_integer_groups_need_narrow_uniform_weights(change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="4 bits or fewer"):
        ptq.Recipe.preset("w4a8").replace(group_size=32, **change)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_the_command_writes_a_model_that_the_others_read(tmp_path: Path) -> None:
    model, out = saved(gated_network(), tmp_path / "m.onnx"), tmp_path / "m.w4a16.onnx"
    np.savez(tmp_path / "x.npz", x=inputs(64))
    code, text = run("quantize", model, "--precision", "w4a16", "--calib", tmp_path / "x.npz")
    assert code == 0, text
    assert "weights only, as was asked: 7 products" in text
    assert out.stat().st_size < 0.6 * model.stat().st_size
    manifest = json.loads((tmp_path / "m.w4a16.ptq.json").read_text())
    assert manifest["recipe"]["weights_only"] is True
    assert not (tmp_path / "m.w4a16.ptq.safetensors").exists()
    code, text = run("compare", model, out, "--calib", tmp_path / "x.npz")
    assert code == 0, text
    assert "SQNR" in text
    code, text = run("inspect", out)
    assert code == 0, text
    assert "weights only" in text
    code, text = run("verify", out)
    assert code == UnsupportedModelError.exit_code
    assert "ptq compare" in text


def test_a_manifest_redoes_the_file_byte_for_byte(tmp_path: Path) -> None:
    model, first = saved(gated_network(), tmp_path / "m.onnx"), tmp_path / "a.onnx"
    np.savez(tmp_path / "x.npz", x=inputs(64))
    code, text = run("quantize", model, "-o", first, "--precision", "w3a16", "--group-size", 32,
                     "--calib", tmp_path / "x.npz", "--seed", 3, "--quiet")  # fmt: skip
    assert code == 0, text
    again = ("--from-manifest", tmp_path / "a.ptq.json", "-o", tmp_path / "b.onnx")
    code, text = run("quantize", model, *again)
    assert code == 0, text
    assert "byte for byte" in text
    assert (tmp_path / "b.onnx").read_bytes() == first.read_bytes()
    np.savez(tmp_path / "x.npz", x=inputs(64, seed=9))
    code, text = run("quantize", model, *again, "--force")
    assert code == 2, text
    assert "have changed" in text


@pytest.mark.parametrize(
    "option", [("--residual-bits", "8"), ("--avg-bits", "3"), ("--cpu", "vnni"), ("--resume",)]
)
def test_options_of_integer_networks_contradict_it(option: tuple[str, ...], tmp_path: Path) -> None:
    model = saved(gated_network(), tmp_path / "m.onnx")
    code, text = run("quantize", model, "--precision", "w4a16", *option)
    assert code == 2, text
    assert option[0] in text or "budgets" in text
