"""`ptq bench`: its options, its profile, and what it says about the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ptq.cli import main
from ptq.report import cpu
from tests.small_cnn import write_cnn


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cnn(tmp_path_factory.mktemp("bench"))


def bench(model: Path, *arguments: object) -> Result:
    paths = (model, model, model)
    words = ("bench", *paths, "--iterations", 6, "--threads", 1, *arguments)
    return CliRunner().invoke(main, [str(word) for word in words])


def test_any_number_of_models_with_any_percentiles(model: Path) -> None:
    result = bench(model, "--percentiles", "10,99.9", "--batch", 2, "--warmup", 0, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [set(t["percentiles"]) for t in printed["timings"]] == [{"10", "50", "99.9"}] * 3
    assert (printed["batch"], printed["threads"], printed["speedups"][0]) == (2, 1, 1.0)
    for (low, high), speedup in zip(printed["speedup_intervals"], printed["speedups"], strict=True):
        assert low <= speedup <= high
    quantiles = printed["timings"][1]["quantiles_ms"]
    assert quantiles == sorted(quantiles)
    assert set(printed["surroundings"]) == {"cpu", "cpus", "pinned", "governor", "load"}


def test_the_profile_names_every_node(model: Path) -> None:
    result = bench(model, "--profile", "--json")
    assert result.exit_code == 0, result.output
    profiles = json.loads(result.stdout)["profiles"]
    assert len(profiles) == 3
    nodes = next(iter(profiles.values()))
    assert {"Conv", "Gemm"} <= {op for node in nodes for op in node["op"].split("Fused")}
    assert sum(node["share"] for node in nodes) == pytest.approx(1)
    assert "slowest nodes" in bench(model, "--profile").stdout


def test_pinning_is_done_said_and_undone(model: Path) -> None:
    before = os.sched_getaffinity(0)
    result = bench(model, "--cpus", min(before))
    assert result.exit_code == 0, result.output
    if (os.cpu_count() or 1) > 1:
        assert f"pinned to CPUs {min(before)}" in result.stdout
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [("--cpus", "99999", "--cpus"), ("--percentiles", "200", "percentile"), ("--cpus", "x", "0,1")],
)
def test_options_that_cannot_be(model: Path, option: str, text: str, said: str) -> None:
    result = bench(model, option, text)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_cpu_without_cpuinfo_still_has_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "nothing")
    assert cpu.this_cpu().name
    assert "no vector extensions known" in str(cpu.this_cpu())


def test_a_compiled_module_runs_beside_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    source = write_cnn(tmp_path)
    for words in (
        ("quantize", source, "-o", tmp_path / "q.onnx", "--no-measure", "--quiet"),
        ("compile", tmp_path / "q.onnx", "-o", tmp_path / "q.so"),
    ):
        made = CliRunner().invoke(main, [str(word) for word in words])
        assert made.exit_code == 0, made.output
    words = ("bench", source, tmp_path / "q.onnx", tmp_path / "q.so", "--iterations", 6, "--json",
             "--profile")  # fmt: skip
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [t["name"] for t in found["timings"]][-1] == "q.so"
    steps = found["profiles"]["q.so"]
    assert {"conv", "gemm"} <= {step["name"] for step in steps}
    assert sum(step["share"] for step in steps) == pytest.approx(1)
    first = CliRunner().invoke(main, ["bench", str(tmp_path / "q.so"), str(source)])
    assert first.exit_code == 2
    assert "put it first" in first.stderr
