"""`ptq eval`: accuracy, and perplexity of language models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ptq.calib_data import InputSpec
from ptq.cli import main
from ptq.errors import CalibrationError, UsageError
from ptq.report.perplexity import Surprise, cross_entropies, token_input

ROOT = Path(__file__).parents[1]
VOCABULARY = 5


def bigram_model(table: np.ndarray, path: Path, ids: str = "tokens") -> Path:
    """logits[n, t] = table[tokens[n, t]]."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", ids], ["logits"])],
        "bigram",
        [helper.make_tensor_value_info(ids, TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "T", VOCABULARY])],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_perplexity_is_that_of_the_bigram_by_hand(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)) * 3
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (11, 7))
    np.savez(tmp_path / "t.npz", tokens=tokens)
    model = bigram_model(table, tmp_path / "m.onnx")
    code, out = run("eval", model, "--ppl", "--data", tmp_path / "t.npz", "--json", "--quiet")
    p = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    wanted = -np.log(p[tokens[:, :-1], tokens[:, 1:]]).mean()
    found = json.loads(out)
    assert code == 0
    assert found["tokens"] == 11 * 6
    assert found["cross_entropy"] == pytest.approx(wanted, rel=1e-6)  # float32 logits
    assert found["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-6)


def test_uniform_logits_have_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    model = bigram_model(np.zeros((VOCABULARY, VOCABULARY)), tmp_path / "m.onnx")
    np.save(tmp_path / "t.npy", np.zeros((2, 4), np.int32))
    code, out = run("eval", model, "--ppl", "--data", tmp_path / "t.npy")
    assert code == 0
    assert f"perplexity {VOCABULARY}.0000" in out


def test_masked_tokens_do_not_count() -> None:
    ids = np.array([[0, 1, 2, 3]])
    logits = np.random.default_rng(0).normal(size=(1, 4, VOCABULARY)).astype(np.float32)
    surprise = Surprise("data")
    surprise.add(ids, {"y": logits}, np.array([[1, 1, 0, 1]]))
    both = cross_entropies(logits[0, :-1], ids[0, 1:])
    assert surprise.found("m").tokens == 2
    assert surprise.found("m").cross_entropy == pytest.approx((both[0] + both[2]) / 2)


def test_large_logits_do_not_overflow() -> None:
    found = cross_entropies(np.array([[1000.0, 0.0]], np.float32), np.array([1]))
    np.testing.assert_allclose(found, 1000.0)


@pytest.mark.parametrize(
    ("ids", "outputs", "message"),
    [
        ([[0]], {"y": np.zeros((1, 1, 5), np.float32)}, "samples of 1 token"),
        ([[0, 7]], {"y": np.zeros((1, 2, 5), np.float32)}, "position 1: got token 7"),
        ([[0, 1]], {"y": np.zeros((1, 5), np.float32)}, "wanted float logits"),
    ],
)
def test_what_is_no_language_model_is_said(
    ids: list[list[int]], outputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        Surprise("data").add(np.array(ids), outputs)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    surprise = Surprise("data")
    surprise.add(np.array([[0, 1]]), {"y": np.full((1, 2, 5), np.nan, np.float32)})
    with pytest.raises(CalibrationError, match="NaN"):
        surprise.found("m")


def integers(name: str) -> InputSpec:
    return InputSpec(name, np.dtype(np.int64), (None, None))


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["tokens"], None, "tokens"),
        (["position_ids", "attention_mask", "input_ids"], None, "input_ids"),
        (["attention_mask", "tokens"], None, "tokens"),
        (["a", "b"], "b", "b"),
    ],
)
def test_the_input_of_tokens_is_found(names: list[str], wanted: str | None, found: str) -> None:
    assert token_input([integers(name) for name in names], wanted) == found


@pytest.mark.parametrize(("names", "wanted"), [(["a", "b"], None), (["a"], "b"), ([], None)])
def test_several_or_no_inputs_of_tokens_are_an_error(names: list[str], wanted: str | None) -> None:
    with pytest.raises(UsageError, match="--ids"):
        token_input([integers(name) for name in names], wanted)


def test_a_model_of_images_has_no_perplexity(tmp_path: Path) -> None:
    data = ROOT / "calib_data/digits_eval.npz"
    code, out = run("eval", ROOT / "calib_data/digits_cnn.onnx", "--ppl", "--data", data)
    assert code == 2
    assert "wanted one of integers [samples, tokens]" in out


def test_ids_without_ppl_contradict_each_other() -> None:
    model, data = ROOT / "calib_data/digits_cnn.onnx", ROOT / "calib_data/digits_eval.npz"
    assert run("eval", model, "--data", data, "--ids", "x")[0] == 2


def test_accuracy_of_the_digits_that_ship() -> None:
    model, data = ROOT / "calib_data/digits_cnn.onnx", ROOT / "calib_data/digits_eval.npz"
    code, out = run("eval", model, "--data", data, "--json", "--quiet")
    found = json.loads(out)
    assert code == 0
    assert found["samples"] == 597
    assert found["top1"] == pytest.approx(0.9966, abs=5e-5)
