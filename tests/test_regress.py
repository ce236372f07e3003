"""`ptq regress` on a small network, from Python, from the shell, and as the CI templates run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from ptq.cli import main
from ptq.report import cpu
from tests.small_cnn import write_cnn

ROOT = Path(__file__).parents[1]
QUICK = ("--duration", 0.2, "--verify-samples", 2, "--max-slowdown", 1000)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised model whose labels are what it answers itself, but for one in ten."""
    folder = tmp_path_factory.mktemp("regress")
    source, out = write_cnn(folder), folder / "q.onnx"
    quick = ("--calib", folder / "samples.npz", "--no-measure", "--quiet", "--effort", "fast")
    # 4 bits everywhere: exact on every CPU
    made = run("quantize", source, "-o", out, "--precision", "w4a8", "--edge-bits", 4, *quick)
    assert made.exit_code == 0, made.output
    _label(folder, out)
    made = run("regress", out, "--baseline", folder / "b.json", "--eval", folder / "eval.npz",
               "--update", *QUICK)  # fmt: skip
    assert made.exit_code == 0, made.output
    return out


def _label(folder: Path, model: Path) -> None:
    from ptq.report.session import open_session

    x = np.random.default_rng(5).normal(size=(60, 3, 8, 8)).astype(np.float32)
    labels = open_session(model).predict({"x": x})["logits"].argmax(1)
    labels[::10] = (labels[::10] + 1) % 4
    np.savez(folder / "eval.npz", x=x, labels=labels)


def regress(model: Path, *more: object) -> Result:
    folder = model.parent
    data = () if "--calib" in more else ("--calib", folder / "eval.npz")
    return run("regress", model, "--baseline", folder / "b.json", *data, *QUICK, *more)


def test_the_same_model_passes_every_gate(model: Path) -> None:
    result = regress(model, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["passed"]
    assert not printed["other_cpu"]
    assert {gate["name"]: gate["status"] for gate in printed["gates"]} == dict.fromkeys(
        ["accuracy", "fidelity", "latency", "size", "mismatches", "islands", "exactness",
         "saturation"], "passed")  # fmt: skip
    assert printed["now"]["outcomes"]["right"].count("1") == 54


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Path:
    """The same model with the biases of its last layer turned round; side files as they were."""
    proto = onnx.load(model)
    biases = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    values = numpy_helper.to_array(biases[-1])
    changed = values[::-1] + np.int32(200_000) * np.arange(len(values), dtype=np.int32)
    biases[-1].CopyFrom(numpy_helper.from_array(changed, biases[-1].name))
    onnx.save(proto, tmp_path / "q.onnx")
    for name in ("q.ptq.json", "q.ptq.safetensors", "b.json", "eval.npz", "model.onnx"):
        (tmp_path / name).write_bytes((model.parent / name).read_bytes())
    return tmp_path / "q.onnx"


def test_a_damaged_model_fails_with_1_and_says_where(damaged: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("junit.xml", "out.sarif", "out.md")]
    options = zip(("--junit", "--sarif", "--markdown"), files, strict=True)
    result = regress(damaged, *(word for pair in options for word in pair))
    assert result.exit_code == 1, result.output
    assert "failed: accuracy, fidelity, mismatches" in result.stderr
    assert all("accuracy" in file.read_text() for file in files)


def test_other_samples_than_the_baselines_are_refused(model: Path) -> None:
    result = regress(model, "--calib", model.parent / "samples.npz")
    assert result.exit_code == 2
    assert "not those of the baseline" in result.stderr


def test_a_missing_and_a_foreign_baseline(model: Path, tmp_path: Path) -> None:
    for text in (None, '{"schema_version": 1}'):
        if text is not None:
            (tmp_path / "b.json").write_text(text)
        result = run("regress", model, "--baseline", tmp_path / "b.json")
        assert result.exit_code == 2
        assert "--update" in result.stderr


def test_another_cpu_is_said_and_latency_by_way_of_float_skipped(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damaged.parent / "b.json"  # its model's file has changed: only the float one is left
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"model name": "Other", "flags": "avx2 avx512f"})
    printed = json.loads(regress(damaged, "--json").stdout)
    assert printed["other_cpu"]
    latency = next(gate for gate in printed["gates"] if gate["name"] == "latency")
    assert latency["status"] == "skipped"
    assert "Other (avx2, avx512f)" in latency["message"]
    assert "another CPU" in regress(damaged).stdout
    assert path.is_file()


def test_latency_by_way_of_the_float_model(damaged: Path) -> None:
    printed = json.loads(regress(damaged, "--json").stdout)
    latency = next(gate for gate in printed["gates"] if gate["name"] == "latency")
    assert latency["status"] == "passed"
    assert "by way of the float model" in latency["message"]


def test_a_compiled_module_has_the_same_gates(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    module = model.with_name("q.so")
    assert run("compile", model, "-o", module).exit_code == 0
    data = ("--baseline", tmp_path / "so.json", "--calib", model.parent / "eval.npz", *QUICK)
    made = run("regress", module, *data, "--update")
    assert made.exit_code == 0, made.output
    result = run("regress", module, *data, "--json")
    assert result.exit_code == 0, result.output
    statuses = {gate["name"]: gate["status"] for gate in json.loads(result.stdout)["gates"]}
    assert statuses["mismatches"] == statuses["latency"] == statuses["accuracy"] == "passed"


def test_a_float_model_has_no_proofs(model: Path, tmp_path: Path) -> None:
    data = ("--baseline", tmp_path / "f.json", "--calib", model.parent / "eval.npz", *QUICK)
    source = model.parent / "model.onnx"
    assert run("regress", source, *data, "--update").exit_code == 0
    result = run("regress", source, *data, "--json")
    assert result.exit_code == 0, result.output
    names = [gate["name"] for gate in json.loads(result.stdout)["gates"]]
    assert names == ["accuracy", "fidelity", "latency", "size"]


def _shell(script: str, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **{k: str(v) for k, v in variables.items()}}
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def _yaml(path: str) -> Any:
    return pytest.importorskip("yaml").safe_load((ROOT / path).read_text())


def _action_environment(step: Any, inputs: dict[str, str]) -> dict[str, str]:
    """What GitHub puts into the step's environment."""
    return {
        key: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")]
        for key, value in step["env"].items()
    }


def test_the_github_action_runs_and_writes_the_summary(model: Path, damaged: Path) -> None:
    action = _yaml(".github/actions/regress/action.yml")
    install, regress_step = action["runs"]["steps"]
    assert install["if"] == "inputs.package != ''"
    defaults = {name: one.get("default", "") for name, one in action["inputs"].items()}
    for folder, code in ((model.parent, 0), (damaged.parent, 1)):
        given = {"model": "q.onnx", "baseline": "b.json", "data": "eval.npz"}
        arguments = {"arguments": " ".join(map(str, QUICK))}
        environment = _action_environment(regress_step, defaults | given | arguments)
        summary, output = folder / "summary.md", folder / "output"
        done = _shell(regress_step["run"], folder, **environment,
                      GITHUB_STEP_SUMMARY=summary, GITHUB_OUTPUT=output)  # fmt: skip
        assert done.returncode == code, done.stderr
        assert f"ptq regress {'failed' if code else 'passed'}" in summary.read_text()
        named = dict(line.split("=") for line in output.read_text().splitlines())
        assert all((folder / path).is_file() for path in named.values())


def test_the_gitlab_template_runs(model: Path, damaged: Path) -> None:
    job = _yaml(".gitlab/regress.yml")[".ptq-regress"]
    given = {"PTQ_MODEL": "q.onnx", "PTQ_BASELINE": "b.json", "PTQ_DATA": "eval.npz",
             "PTQ_ARGUMENTS": " ".join(map(str, QUICK))}  # fmt: skip
    for folder, code in ((model.parent, 0), (damaged.parent, 1)):
        done = _shell("\n".join(job["script"]), folder, **{**job["variables"], **given})
        assert done.returncode == code, done.stderr
        junit = job["artifacts"]["reports"]["junit"].replace("$PTQ_REPORTS", "ptq-reports")
        assert (folder / junit).is_file()


def test_the_baseline_file_is_read_as_it_was_written(model: Path) -> None:
    from ptq.report.baseline import load_baseline, save_baseline

    path = model.parent / "b.json"
    before = load_baseline(path)
    save_baseline(before, path)
    assert load_baseline(path) == before
    assert msgspec.json.decode(path.read_bytes())["schema_version"] == 1
