"""What is written beside the model, and what is printed about it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from ptq.errors import InvalidModelError, OutputError
from ptq.files import sha256
from ptq.integer.program import Certificate
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.report import artifact
from ptq.report.artifact import SidePaths, float_source, load_manifest, load_program, save
from ptq.report.console import make_console, print_report, printable
from ptq.report.progress import progress
from ptq.report.summary import IslandRow, file_bytes, make_report, summarise
from ptq.result import Result
from tests.small_cnn import SHAPE, small_cnn, write_cnn


@pytest.fixture(scope="module")
def result() -> Result:
    rng = np.random.default_rng(5)
    samples = [{"x": rng.normal(size=(8, *SHAPE)).astype(np.float32)}]
    return quantize(
        small_cnn(), samples, Recipe.from_bits(4).replace(rounding="nearest", effort="fast")
    )


def test_names_beside_the_model() -> None:
    paths = SidePaths(Path("a/m.w4a8.onnx"))
    assert paths.manifest == Path("a/m.w4a8.ptq.json")
    assert paths.program == Path("a/m.w4a8.ptq.safetensors")
    assert paths.data == Path("a/m.w4a8.onnx.data")
    assert SidePaths(Path("m.bin")).manifest == Path("m.bin.ptq.json")


def test_the_manifest_says_what_was_done(result: Result, tmp_path: Path) -> None:
    source = write_cnn(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    save(result, out / "q.onnx", source=source)
    manifest = load_manifest(out / "q.onnx")
    assert manifest.recipe == result.recipe
    assert manifest.seed == result.recipe.seed
    assert manifest.certificates == result.program.certificates
    assert {f.path: f.sha256 for f in manifest.files} == {
        name: sha256(out / name) for name in ("q.onnx", "q.ptq.safetensors")
    }
    assert manifest.source is not None
    assert manifest.source.path == "../model.onnx"
    assert manifest.versions["onnxruntime"][0].isdigit()
    assert manifest.report == artifact.without_clock(make_report(result, source))
    assert str(tmp_path) not in (out / "q.ptq.json").read_text()


def test_the_float_model_is_found_unless_it_changed(result: Result, tmp_path: Path) -> None:
    source = write_cnn(tmp_path)
    save(result, tmp_path / "q.onnx", source=source)
    manifest = load_manifest(tmp_path / "q.onnx")
    found = float_source(tmp_path / "q.onnx", manifest)
    assert found is not None
    assert found.samefile(source)
    source.write_bytes(source.read_bytes() + b"\n")
    assert float_source(tmp_path / "q.onnx", manifest) is None
    source.unlink()
    assert float_source(tmp_path / "q.onnx", manifest) is None


def test_a_model_above_the_protobuf_limit_keeps_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).normal(size=(32, 3, 3, 3)).astype(np.float32)
    result = quantize(small_cnn(weight=weight), None, Recipe(rounding="nearest", samples=16))
    monkeypatch.setattr(artifact, "LARGEST_PROTO_BYTES", 10)
    save(result, tmp_path / "q.onnx")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"q.onnx", "q.onnx.data", "q.ptq.json", "q.ptq.safetensors"}
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    proto = onnx.load(tmp_path / "q.onnx", load_external_data=False)
    locations = {
        e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"
    }
    assert locations == {"q.onnx.data"}
    sizes = [(tmp_path / name).stat().st_size for name in ("q.onnx", "q.onnx.data")]
    assert file_bytes(tmp_path / "q.onnx") == sum(sizes)
    save(result, tmp_path / "q.onnx", force=True)


def test_what_lay_in_the_float_models_files_goes_with_the_model(tmp_path: Path) -> None:
    """Here a table of indices, which is too large to be simplified and is not quantised."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    shifted (float[N, 8] x) => (float[N, 600, 4] y)
      <int64[1] zero = {0}, int64 first = {0}, int64 one = {1}, int64[1] last = {1}> {
        products = MatMul(x, weight)
        sizes = Shape(x)
        count = Gather(sizes, zero)
        end = Squeeze(count)
        rows = Range(first, end, one)
        column = Unsqueeze(rows, last)
        shifted = Add(column, table)
        indices = Mod(shifted, count)
        y = Gather<axis = 0>(products, indices)
    }"""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    arrays = {"weight": rng.normal(size=(8, 4)).astype(np.float32), "table": np.arange(600)[None]}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    (tmp_path / "float").mkdir()
    onnx.save(model, tmp_path / "float" / "m.onnx", save_as_external_data=True, size_threshold=0)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    recipe = Recipe(rounding="nearest")
    save(quantize(tmp_path / "float" / "m.onnx", [{"x": x}], recipe), tmp_path / "q.onnx")
    shutil.rmtree(tmp_path / "float")
    (y,) = onnxruntime.InferenceSession(tmp_path / "q.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y[3, 14], x[1] @ arrays["weight"], atol=0.1)


def test_existing_files_are_kept(result: Result, tmp_path: Path) -> None:
    (tmp_path / "q.ptq.json").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        artifact.check(tmp_path / "q.onnx")
    with pytest.raises(OutputError, match="--force"):
        save(result, tmp_path / "q.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["q.ptq.json"]


def test_a_model_without_side_files_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"q\.ptq\.json is not beside it"):
        load_manifest(tmp_path / "q.onnx")
    with pytest.raises(InvalidModelError, match=r"q\.ptq\.safetensors"):
        load_program(tmp_path / "q.onnx")


def test_the_report_counts_layers_and_bytes(result: Result) -> None:
    report = make_report(result)
    kinds = {layer.name: (layer.op, layer.weight_bits) for layer in report.layers}
    assert kinds["conv"] == ("Convolve", 8)  # the first and the last layer
    assert kinds["gemm"] == ("Gemm", 8)
    assert all(layer.output_bits == 8 for layer in report.layers)
    certified = [layer for layer in report.layers if layer.exact is not None]
    assert len(certified) == report.certificates.steps == report.certificates.exact == 3
    assert report.certificates.largest_accumulator == max(
        layer.accumulator_bound or 0 for layer in certified
    )
    wide = Certificate("norm", 2**40, exact=True, pair_safe=True, accumulator_bits=64)
    narrow = Certificate("conv", 1234, exact=True, pair_safe=True)
    assert summarise((wide, narrow)).largest_accumulator == 1234  # the limit shown is int32's
    encoded = result.model
    assert report.quantized_bytes > sum(
        v.const_value.nbytes for v in encoded.graph.initializers.values() if v.const_value
    )
    decoded = json.loads(report.to_json())
    assert decoded["schema_version"] == 1
    assert msgspec.json.decode(report.to_json(), type=type(report)) == report


def test_names_are_not_markup_and_do_not_steer(
    result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    islands = (IslandRow("[red]a[/red]\x1b[2J", "Odd", "[link=http://x]because[/link]"),)
    print_report(replace(make_report(result), islands=islands), make_console())
    printed = capsys.readouterr().out
    assert "[red]a[/red]" in printed
    assert "[link=http://x]because[/link]" in printed
    assert "\x1b" not in printed
    assert printable("a\x07b\nc") == "a\N{REPLACEMENT CHARACTER}b\nc"


def test_progress_is_one_line_a_stage_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress(quiet=False) as show:
        for done in range(5):
            show("one", done, 5)
        show("two", 0, None)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["one ...", "two ..."]
    assert captured.out == ""


def test_progress_on_a_terminal_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr("ptq.report.progress.make_console", lambda *, stderr: terminal)
    with progress(quiet=False) as show:
        for stage in ("one", "two", "one"):
            for done in range(3):
                show(stage, done, 3)
    assert "left" in file.getvalue()
    assert "2/3" in file.getvalue()


def test_quiet_progress_lets_errors_through_only(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    log = logging.getLogger("ptq.something")
    with progress(quiet=True):
        log.warning("a warning")
        log.error("an error")
    with progress(quiet=False):
        log.warning("another warning")
    err = capsys.readouterr().err
    assert "a warning" not in err
    assert "error: an error" in err
    assert "warning: another warning" in err
    assert logging.getLogger("ptq").handlers == []
