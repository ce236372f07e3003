"""The commands on a small network, option conflicts, exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from ptq import errors, pipeline, recipe
from ptq.cli import main
from ptq.report import options
from tests.small_cnn import write_cnn

FAST = ("--no-measure", "--quiet", "--effort", "fast")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cnn(tmp_path)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    model = write_cnn(folder)
    samples = folder / "samples.npz"
    result = run("quantize", model, "-o", folder / "q.onnx", "--bits", 4, "--calib", samples, *FAST)
    assert result.exit_code == 0, result.output
    return folder / "q.onnx"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from ptq.cli import main\n"
        "assert CliRunner().invoke(main, ['quantize', '--help']).exit_code == 0\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'rich', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_choices_are_those_of_the_recipe() -> None:
    assert get_args(recipe.Method) == options.METHODS
    assert get_args(recipe.Target) == options.TARGETS
    assert get_args(recipe.GridFamily) == options.GRIDS
    assert get_args(recipe.ResidualBits) == options.RESIDUAL_BITS


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ((), (16, True)),
        (("--residual-bits", 8, "--no-balance"), (8, False)),
    ],
)
def test_transformer_passes_are_on_unless_told(
    model: Path, arguments: tuple[object, ...], chosen: tuple[int, bool]
) -> None:
    out = model.parent / "q.onnx"
    assert run("quantize", model, "-o", out, *arguments, *FAST).exit_code == 0
    made = json.loads(out.with_suffix(".ptq.json").read_text())["recipe"]
    assert (made["residual_bits"], made["balance"]) == chosen


def test_a_free_length_is_named_before_calibration(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", "length", 4])
        for name in "xy"
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]),
        tmp_path / "free.onnx",
    )
    done = run("quantize", tmp_path / "free.onnx", "--target", "tvm:c", *FAST)
    assert done.exit_code == 3
    assert "give --size length=N" in done.output
    wrong = run("quantize", tmp_path / "free.onnx", "--size", "length=3", *FAST)
    assert wrong.exit_code == 2
    assert "--size: only a compiled module" in wrong.output


@pytest.mark.parametrize(
    ("arguments", "rounding", "method"),
    [
        ((), "squant", "minmax"),
        (("--calib-method", "mse"), "squant", "mse"),
        (("--calib", "samples.npz"), "gptq", "mse"),
    ],
)
def test_without_samples_other_defaults_hold(
    model: Path, arguments: tuple[str, ...], rounding: str, method: str
) -> None:
    given = [model.parent / a if a.endswith("npz") else a for a in arguments]
    out = model.parent / "q.onnx"
    assert run("quantize", model, "-o", out, *given, *FAST).exit_code == 0
    chosen = json.loads(out.with_suffix(".ptq.json").read_text())["recipe"]
    assert (chosen["rounding"], chosen["calib_method"]) == (rounding, method)


def test_quantize_prints_json_and_writes_three_files(model: Path) -> None:
    folder = model.parent
    result = run(
        "quantize", model, "--bits", 4, "--calib", folder / "samples.npz",
        "--eval", folder / "eval.npz", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["command"] == "quantize"
    assert printed["schema_version"] == 1
    assert printed["precision"] == "w4a8"
    assert printed["samples"] == 40
    assert printed["certificates"]["exact"] == printed["certificates"]["steps"] == 3
    assert printed["comparison"]["samples"] == 20
    assert 0 <= printed["comparison"]["second_top1"] <= 1
    assert printed["latency"]["speedups"][1] > 0
    assert "w4a8" in result.stderr
    assert "the first and the last layer" in result.stderr
    names = {path.name for path in folder.iterdir()} - {"model.onnx", "samples.npz", "eval.npz"}
    assert names == {"model.w4a8.onnx", "model.w4a8.ptq.json", "model.w4a8.ptq.safetensors"}
    assert {path.stat().st_mode for path in folder.iterdir()} == {model.stat().st_mode}


def test_quantize_prints_tables_for_people(model: Path) -> None:
    result = run("quantize", model, "--precision", "w8a8", "--calib", model.parent / "samples.npz")
    assert result.exit_code == 0, result.output
    for words in ("w8a8 for onnx", "latency, batch 1", "SQNR", "0 float islands", "wrote"):
        assert words in result.stdout


def test_the_same_run_gives_the_same_bytes(model: Path) -> None:
    folder = model.parent
    for name in ("a", "b"):
        out = folder / name / "q.onnx"
        out.parent.mkdir()
        arguments = ("quantize", model, "-o", out, "--calib", folder / "samples.npz", *FAST)
        assert run(*arguments).exit_code == 0
    for name in ("q.onnx", "q.ptq.json", "q.ptq.safetensors"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_quiet_prints_nothing(quantized: Path) -> None:
    result = run("verify", quantized, "--quiet")
    assert result.output == ""


def test_verify_counts_no_mismatch(quantized: Path) -> None:
    samples = quantized.parent / "samples.npz"
    result = run("verify", quantized, "--calib", samples, "--samples", 10, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["mismatches"] == 0
    assert printed["samples"] == 10
    assert printed["hidden"] == []
    assert printed["codes"] > 10 * 6 * 64
    names = {layer["name"] for layer in printed["layers"]}
    assert {"x", "r"} <= names
    assert all(layer["float_scores"]["sqnr_db"] > 10 for layer in printed["layers"])
    assert printed["outputs"][0]["float_scores"]["top1_agreement"] > 0.5


@pytest.mark.parametrize("target", ["onnx-strict", "onnx-qdq"])
def test_verify_prints_another_target(quantized: Path, target: str) -> None:
    result = run("verify", quantized, "--target", target, "--samples", 4, "--no-float", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["mismatches"] == 0


def test_verify_fails_on_a_changed_weight(quantized: Path, tmp_path: Path) -> None:
    for path in quantized.parent.glob("q.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    proto = onnx.load(tmp_path / "q.onnx")
    layer = next(n for n in proto.graph.node if n.op_type == "QLinearConv")
    bias = next(t for t in proto.graph.initializer if t.name == layer.input[8])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 5000, bias.name))
    onnx.save(proto, tmp_path / "q.onnx")
    result = run("verify", tmp_path / "q.onnx", "--samples", 4, "--no-float", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["mismatches"] > 0
    assert "differ from the reference" in result.stderr


def test_verify_says_when_the_float_model_has_gone(quantized: Path, tmp_path: Path) -> None:
    for path in quantized.parent.glob("q.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    alone = run("verify", tmp_path / "q.onnx", "--samples", 2)
    assert "--float" in alone.stderr
    model = quantized.parent / "model.onnx"
    given = run("verify", tmp_path / "q.onnx", "--samples", 2, "--float", model, "--json")
    assert json.loads(given.stdout)["layers"][0]["float_scores"] is not None


def test_integer_boundary_works_everywhere(model: Path) -> None:
    folder, samples = model.parent, model.parent / "samples.npz"
    out = folder / "q.onnx"
    made = run("quantize", model, "-o", out, "--io", "integer", "--calib", samples, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["comparison"]["outputs"]["logits"]["sqnr_db"] > 15
    verified = run("verify", out, "--calib", samples, "--json")
    assert json.loads(verified.stdout)["mismatches"] == 0
    compared = run("compare", model, out, "--calib", samples, "--json")
    assert json.loads(compared.stdout)["outputs"]["logits"]["sqnr_db"] > 15
    assert run("bench", out, "--seconds", "0.1", "--calib", samples).exit_code == 0


def test_inspect_tells_float_from_quantized(quantized: Path) -> None:
    found = json.loads(run("inspect", quantized, "--json").stdout)
    assert found["kind"] == "quantized"
    assert found["runtime"]["float_ops"] == []
    assert {layer["weight_bits"] for layer in found["layers"]} >= {8}
    found = json.loads(run("inspect", quantized.parent / "model.onnx", "--json").stdout)
    assert found["kind"] == "float"
    assert found["operators"]["Conv"] == 1
    assert found["islands"] == []
    people = run("inspect", quantized)
    assert "float ops inside: none" in people.stdout


def test_inspect_names_islands_and_reasons(model: Path) -> None:
    found = run("inspect", model, "--exclude", "gemm")
    assert found.exit_code == 0, found.output
    assert "excluded by the user" in found.stdout


def test_bench_times_against_the_float_model(quantized: Path) -> None:
    result = run("bench", quantized, "--iterations", 6, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [t["name"] for t in printed["timings"]] == ["model.onnx", "q.onnx"]
    assert [t["iterations"] for t in printed["timings"]] == [6, 6]
    assert printed["speedups"][0] == 1
    assert printed["threads"] == 1


def test_bench_wants_something_to_compare_with(model: Path) -> None:
    result = run("bench", model)
    assert result.exit_code == 2
    assert "--float" in result.stderr


def test_compare_reports_accuracy_with_labels(quantized: Path) -> None:
    model, data = quantized.parent / "model.onnx", quantized.parent / "eval.npz"
    printed = json.loads(run("compare", model, quantized, "--eval", data, "--json").stdout)
    assert printed["samples"] == 20
    assert printed["first_top1"] is not None
    same = json.loads(run("compare", model, model, "--eval", data, "--json").stdout)
    assert same["outputs"]["logits"]["max_error"] == 0
    assert same["first_top1"] == same["second_top1"]


def test_conflicting_options_are_errors(model: Path, quantized: Path, tmp_path: Path) -> None:
    saved = tmp_path / "recipe.json"
    saved.write_text(recipe.Recipe().to_json())
    samples = tmp_path / "samples.npz"
    cases = [
        (("quantize", model, "--bits", 4, "--precision", "w4a8"), "contradict"),
        (("quantize", model, "--bits", 4, "--recipe", saved), "contradict"),
        (("quantize", model, "--precision", "w4a9"), "w<2-8>a<2-8>"),
        (("quantize", model, "--bits", 9), "2<=x<=8"),
        (("quantize", model, "--target", "tflite"), "onnx-strict"),
        (("quantize", tmp_path / "no.onnx"), "does not exist"),
        (("quantize", model, "-o", model), "is the input itself"),
        (("quantize", model, "-o", model, "--force"), "is the input itself"),
        (("quantize", model, "-o", tmp_path), "is a folder"),
        (("quantize", model, "-o", tmp_path / "no" / "q.onnx"), "no such folder"),
        (("quantize", model, "-o", quantized), "--force"),
        (("quantize", model, "--recipe", samples), "not a recipe"),
        (("compare", model, model, "--calib", "a", "--eval", samples), "contradict"),
        (("bench",), "MODELS"),
        (("quantise", model), "No such command"),
    ]
    before = set(tmp_path.rglob("*"))
    for arguments, words in cases:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert words in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
    assert set(tmp_path.rglob("*")) == before


def test_force_replaces_and_its_absence_does_not(model: Path) -> None:
    out = model.with_name("q.onnx")
    out.write_text("precious")
    arguments = ("quantize", model, "-o", out, "--calib", model.parent / "samples.npz", *FAST)
    assert run(*arguments).exit_code == 2
    assert out.read_text() == "precious"
    assert run(*arguments, "--force").exit_code == 0
    assert onnx.load(out).producer_name == "ptq"


def _leaves(kind: type[errors.PtqError]) -> list[type[errors.PtqError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _leaves(child))]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((kind("what happened"), kind.exit_code) for kind in _leaves(errors.PtqError)),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("what happened"), 70),
        (ModuleNotFoundError("what happened", name="torch"), 4),
        (OSError(errno.ENOSPC, "what happened"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_exception_has_its_exit_code(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    before = set(model.parent.iterdir())
    monkeypatch.setattr(pipeline, "quantize", _raiser(error))
    result = run("quantize", model)
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in run("quantize", model, "--debug").stderr
    assert set(model.parent.iterdir()) == before


def _raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def test_error_messages_cannot_steer_the_terminal(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "quantize", _raiser(errors.ModelError("node \x1b[2J\x07")))
    assert "\x1b" not in run("quantize", model).stderr


def test_closed_pipe_is_no_error(quantized: Path) -> None:
    for arguments in (("inspect", str(quantized)), ("inspect", str(quantized), "--json")):
        process = subprocess.Popen(
            [sys.executable, "-m", "ptq.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 0
        assert stderr == b""


def test_fixed_batch_and_several_outputs(tmp_path: Path) -> None:
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul"),
            helper.make_node("ArgMax", ["y"], ["k"], name="argmax", axis=1),
        ],
        "fixed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])],
        [
            helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [2, 4]),
            helper.make_tensor_value_info("k", onnx.TensorProto.INT64, [2, 1]),
        ],
        [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    made = run("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--json")
    assert made.exit_code == 0, made.output
    assert set(json.loads(made.stdout)["comparison"]["outputs"]) == {"r", "k"}
    verified = json.loads(run("verify", tmp_path / "q.onnx", "--samples", 8, "--json").stdout)
    assert verified["mismatches"] == 0
    assert [output["name"] for output in verified["outputs"]] == ["r", "k"]
