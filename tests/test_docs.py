"""What the documentation shows runs: every command and every example, page by page, in order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ptq.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/pages").glob("*.md"))
DIGITS = {
    "model.onnx": "digits_cnn.onnx",
    "samples.npz": "digits_calib.npz",
    "eval.npz": "digits_eval.npz",
}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return _BLOCK.findall(page.read_text())


def run_block(language: str, text: str, names: dict[str, object]) -> None:
    if language == "python":
        exec(compile(text, "docs", "exec"), names)
    if language == "console":
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            assert words[0] == "ptq"
            result = CliRunner().invoke(main, [*words[1:], "--quiet"])
            assert result.exit_code == 0, f"{line}: {result.output}"


SHOWN = [p for p in PAGES if any(lang in ("python", "console") for lang, _ in blocks(p))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in DIGITS.items():
        shutil.copy(ROOT / "calib_data" / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for language, text in blocks(page):
        run_block(language, text, names)


def test_every_command_and_page_is_in_the_navigation() -> None:
    text = (ROOT / "docs/mkdocs.yml").read_text()
    assert all(page.name in text for page in PAGES)
    index = "".join(page.read_text() for page in PAGES)
    assert all(f"ptq {name}" in index for name in main.commands)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "docs/mkdocs.yml"), site_dir=str(tmp_path))
    build(config)
    reference = (tmp_path / "cli.html").read_text()
    for name, command in main.commands.items():
        assert f"ptq {name}" in reference or f'id="{name}' in reference
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert all(option in reference for option in options)
