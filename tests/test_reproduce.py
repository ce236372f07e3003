"""`--from-manifest` redoes a model byte for byte, and refuses what is not what the manifest saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ptq.cli import main
from ptq.report.artifact import data_hash
from tests.small_cnn import write_cnn


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    source = write_cnn(tmp_path)
    result = run("quantize", source, "-o", tmp_path / "q.onnx", "--bits", 3, "--seed", 5,
                 "--effort", "fast", "--samples", 30, "--calib", tmp_path / "samples.npz",
                 "--quiet")  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path


def redo(folder: Path, *more: object) -> Result:
    words = ("--from-manifest", folder / "q.ptq.json", "-o", folder / "r.onnx")
    return run("quantize", folder / "model.onnx", *words, *more)


def test_the_same_bytes_come_out_under_another_name(made: Path) -> None:
    result = redo(made)
    assert result.exit_code == 0, result.output
    assert "byte for byte" in result.stdout
    for suffix in (".onnx", ".ptq.safetensors"):
        assert (made / f"r{suffix}").read_bytes() == (made / f"q{suffix}").read_bytes()
    recipe = json.loads((made / "r.ptq.json").read_text())["recipe"]
    assert (recipe["seed"], recipe["weight_bits"]) == (5, 3)


def test_other_bytes_than_the_manifest_lists_fail_the_gate(made: Path) -> None:
    path = made / "q.ptq.json"
    text = path.read_text()
    listed = json.loads(text)["files"][0]["sha256"]
    path.write_text(text.replace(listed, "0" * 64))
    result = redo(made)
    assert result.exit_code == 1
    assert "q.onnx" in result.stderr


def test_another_model_other_samples_and_other_choices_are_refused(made: Path) -> None:
    assert "leave out --bits" in redo(made, "--bits", 4).stderr
    assert "wants -o" in run("quantize", made / "model.onnx", "--from-manifest",
                             made / "q.ptq.json").stderr  # fmt: skip
    with np.load(made / "samples.npz") as data:
        np.savez(made / "samples.npz", x=data["x"] + 1)
    result = redo(made)
    assert result.exit_code == 2
    assert "they have changed" in result.stderr
    (made / "samples.npz").unlink()
    assert "are not there" in redo(made).stderr
    (made / "model.onnx").write_bytes((made / "q.onnx").read_bytes())
    assert "not the float model" in redo(made).stderr


@pytest.mark.parametrize("how", ["compile", pytest.param("quantize", marks=pytest.mark.slow)])
def test_a_compiled_library_is_redone(made: Path, how: str) -> None:
    pytest.importorskip("tvm")
    out = made / "lib.so"
    if how == "compile":
        done = run("compile", made / "q.onnx", "-o", out, "--batch", 2)
    else:
        done = run("quantize", made / "model.onnx", "-o", out, "--calib", made / "samples.npz",
                   "--bits", 3, "--target", "tvm:llvm:native", "--no-measure")  # fmt: skip
    assert done.exit_code == 0, done.output
    manifest = made / "lib.so.ptq.json"
    again = run("quantize", made / "model.onnx", "--from-manifest", manifest,
                "-o", made / "again.so")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert (made / "again.so").read_bytes() == out.read_bytes()
    known = json.loads(manifest.read_text())
    assert known["compiled"]["batch"] == (2 if how == "compile" else None)
    assert "native" not in known["compiled"]["target"]  # the CPU itself: another one may redo it
    assert known["versions"]["apache-tvm"] != "not installed"


def test_another_version_is_said(made: Path) -> None:
    path = made / "q.ptq.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["numpy"] = "1.0"
    path.write_text(json.dumps(manifest))
    assert "numpy 1.0 (here 2" in redo(made).stderr


def test_check_reproducible_runs_it_again(tmp_path: Path) -> None:
    source = write_cnn(tmp_path)
    result = run("quantize", source, "-o", tmp_path / "q.onnx", "--no-measure",
                 "--calib", tmp_path / "samples.npz", "--check-reproducible")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "a second run gave the same bytes" in result.stderr


def test_invented_samples_are_redone_too(tmp_path: Path) -> None:
    source = write_cnn(tmp_path)
    made = run("quantize", source, "-o", tmp_path / "q.onnx", "--no-measure", "--quiet")
    assert made.exit_code == 0, made.output
    assert redo(tmp_path).exit_code == 0
    assert "without samples" in redo(tmp_path, "--force", "--calib", "x.npz").stderr


def test_data_hashes_cover_folders_and_functions(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a")
    before = data_hash(str(folder))
    (folder / "a.bin").rename(folder / "b.bin")
    assert data_hash(str(folder)) != before
    (tmp_path / "f.py").write_text("def samples(): ...")
    assert data_hash(f"{tmp_path / 'f.py'}:samples") == data_hash(str(tmp_path / "f.py"))
