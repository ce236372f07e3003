"""The report's content and its three forms; names that would be markup stay names."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from ptq.cli import main
from ptq.grid import Grid
from ptq.histogram import Histogram
from ptq.pages import load_front, make_page
from ptq.plan import ActivationPlan, WeightPlan
from ptq.report.page.forms import to_html, to_markdown
from ptq.report.page.rows import activation_bars, weight_bars
from ptq.report.rungs import Rung
from tests.small_cnn import write_cnn

EVIL = '<script>document.title="owned"</script>|`*'


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised model with a float island and a node whose name is markup."""
    folder = tmp_path_factory.mktemp("page")
    source = write_cnn(folder)
    proto = onnx.load(source)
    proto.graph.node[0].name = EVIL
    onnx.save(proto, source)
    out = folder / "q.onnx"
    made = run("quantize", source, "-o", out, "--precision", "w4a8", "--edge-bits", 4, "--quiet",
               "--effort", "fast", "--exclude", "gemm",
               "--calib", folder / "samples.npz")  # fmt: skip
    assert made.exit_code == 0, made.output
    front = {"quality": "SQNR, dB", "points": [
        {"label": "q.onnx", "size_bytes": 1000, "quality": 20.0},
        {"label": "large", "size_bytes": 2000, "quality": 30.0},
    ]}  # fmt: skip
    (folder / "front.json").write_text(json.dumps(front))
    return out


def page(model: Path, suffix: str) -> Path:
    out = model.with_suffix(suffix)
    if not out.is_file():
        result = run("report", model, "-o", out, "--calib", model.parent / "samples.npz",
                     "--front", model.parent / "front.json")  # fmt: skip
        assert result.exit_code == 0, result.output
    return out


def test_json_holds_everything(model: Path) -> None:
    found = json.loads(page(model, ".json").read_text())
    conv = found["layers"][0]
    assert conv["name"] == EVIL
    assert (conv["weight_bits"], conv["grid"]) == (4, "uniform, zero point")
    assert conv["weight_bytes"] == 6 * 27 // 2
    assert 10 < conv["weight_sqnr_db"] < 40
    assert conv["output_sqnr_db"] > 10
    assert len(conv["weights"]["levels"]) == 16
    assert len(conv["outputs"]["levels"]) == 256
    assert {island["name"] for island in found["islands"]} == {"gemm"}
    assert found["latency"]["timings"][1]["quantiles_ms"]
    assert [point["this"] for point in found["front"]["points"]] == [True, False]
    assert {"float model", "q.onnx", "seed", "versions", "recipe"} <= set(found["provenance"])
    assert found["graph"][1]["reads"] == [0]
    assert {node["bits"] for node in found["graph"]} >= {None, 4, 8}


def test_markdown_and_html_say_what_json_says(model: Path) -> None:
    found = json.loads(page(model, ".json").read_text())
    pages = [html.unescape(page(model, suffix).read_text()) for suffix in (".md", ".html")]
    for text in pages:
        plain = text.replace("\\", "").replace("\N{NO-BREAK SPACE}", " ")
        for fact in found["facts"]:
            assert fact["integer"] in plain
        assert all(layer["name"] in plain for layer in found["layers"])
        assert all(island["reason"] in plain for island in found["islands"])
        assert all(value in plain for value in found["provenance"].values())
        assert found["lints"][0]["message"] in plain
        for heading in ("Layers", "Float islands", "Pareto front", "Latency", "Provenance"):
            assert heading in plain


def test_stages_are_shown_where_there_were_any(model: Path) -> None:
    rungs = (Rung("round", 0.5, 10.0, True, 1.0), Rung("learn", 0.4, 12.5, False, 2.0))
    made = replace(make_page(model), ladder=rungs)
    for text in (to_html(made), to_markdown(made)):
        assert "Stages" in text
        assert "+2.50" in text
        assert "no gain" in text
    assert "Stages" not in to_html(replace(made, ladder=()))


def test_names_are_escaped_and_nothing_is_fetched(model: Path) -> None:
    text = page(model, ".html").read_text()
    assert "<script>document.title" not in text
    assert text.count("<script>") == 1
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", text)
    markdown = page(model, ".md").read_text()
    assert "<script>" not in markdown
    assert "\\|\\`\\*" in markdown


def test_without_samples_the_tensors_are_left_out(model: Path) -> None:
    out = model.with_name("bare.json")
    assert run("report", model, "-o", out).exit_code == 0
    found = json.loads(out.read_text())
    assert found["layers"][0]["output_sqnr_db"] is None
    assert found["layers"][0]["weights"] is not None
    assert found["front"] is None


def test_the_front_that_explore_wrote_is_read(tmp_path: Path) -> None:
    point = {"precision_map": {}, "average_bits": 4.0, "bops": 1.0, "predicted": 0.1}
    quality = {"samples": 8, "agreement": 1.0, "sqnr_db": 20.0, "drop": 0.0}
    named = [
        {"name": name, "size_bytes": size, "quality": {**quality, "loss": loss}, **point}
        for name, size, loss in (("mixed 1", 1000, 0.1), ("uniform w8", 2000, 0.01))
    ]
    written = {"points": named[:1], "uniform": named[1:], "rank_correlation": None, "front": [0]}
    (tmp_path / "explore.json").write_text(json.dumps(written))
    front = load_front(tmp_path / "explore.json", Path("mixed 1"))
    assert [p.quality for p in front.points] == pytest.approx([10, 20])
    assert [p.this for p in front.points] == [True, False]


def test_mistakes(model: Path, tmp_path: Path) -> None:
    existing = page(model, ".json")
    assert run("report", model, "-o", existing).exit_code == 2
    assert "ends in .html" in run("report", model, "-o", tmp_path / "x.pdf").stderr
    (tmp_path / "f.json").write_text("[]")
    result = run("report", model, "-o", tmp_path / "x.md", "--front", tmp_path / "f.json")
    assert result.exit_code == 2
    assert "not a Pareto front" in result.stderr
    assert run("report", model.parent / "model.onnx", "-o", tmp_path / "x.md").exit_code == 3


def test_weight_bars_count_weights_between_levels() -> None:
    # scale 1, zero point 8: codes 0 .. 15 are the integers -8 .. 7
    weight = np.float64([[-8.4, 0.0, 3.2, 7.0]])
    plan = WeightPlan(Grid(4), 0, np.float32([1]), np.int64([8]), np.uint8([[0, 8, 11, 15]]))
    bars = weight_bars((weight, 0), plan)
    assert bars is not None
    assert bars.levels == tuple(float(k) for k in range(-8, 8))
    assert (bars.low, bars.high, sum(bars.counts)) == (-8.5, 7.5, 4)


def test_activation_bars_leave_zeros_out() -> None:
    histogram = Histogram()
    histogram.update(np.float32([0, 0, 1, 2, 2, 3]))
    bars = activation_bars(histogram, ActivationPlan(Grid(2), np.float32(1), 0, 0, 3))
    assert bars is not None
    assert bars.levels == (0.0, 1.0, 2.0, 3.0)
    assert sum(bars.counts) == 4
    assert "33 % are zero" in bars.unit
    assert activation_bars(Histogram(), ActivationPlan(Grid(2), np.float32(1), 0)) is None


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def rendered(file: Path) -> str:
    """The document after the browser has laid it out and run its scripts."""
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
         f"--user-data-dir={file.parent / 'profile'}", "--virtual-time-budget=5000",
         "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@browser
def test_the_browser_runs_our_script_and_no_other(model: Path) -> None:
    dom = rendered(page(model, ".html"))
    assert "<title>q.onnx · ptq report</title>" in dom
    assert dom.count('<button type="button">') == 11  # the script made the heads sort
    # changed by one character, it is not the script that the page's policy knows
    other = model.with_name("other.html")
    other.write_text(page(model, ".html").read_text().replace("// Only", "// only"))
    bare = rendered(other)
    assert '<button type="button">' not in bare
    assert bare.count("<tr>") == dom.count("<tr>")


@browser
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_the_screen(model: Path, width: int) -> None:
    """No sideways scrolling but inside the tables. The policy is taken out to measure."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page(model, ".html").read_text(), flags=re.DOTALL)
    measure = "<script>parent.postMessage(document.documentElement.scrollWidth, '*');</script>"
    model.with_name("measured.html").write_text(text.replace("</body>", f"{measure}</body>"))
    frame = model.with_name("frame.html")
    frame.write_text(
        "<script>onmessage = (event) => { document.title = event.data; };</script>"
        f'<iframe src="measured.html" style="border: 0; width: {width}px; height: 800px"></iframe>'
    )
    title = re.search(r"<title>(\d+)</title>", rendered(frame))
    assert title is not None
    assert int(title[1]) <= width
