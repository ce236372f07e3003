"""All or nothing: `staged`, and the check before it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ptq import files
from ptq.errors import OutputError


def test_files_arrive_when_the_block_ends(tmp_path: Path) -> None:
    with files.staged(tmp_path) as stage:
        (stage / "a.onnx").write_text("model")
        (stage / "a.json").write_text("manifest")
        assert [p for p in tmp_path.iterdir() if p != stage] == []
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.onnx": "model",
        "a.json": "manifest",
    }


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_arrives_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with files.staged(tmp_path) as stage:
            (stage / "a").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old")

    def write() -> None:
        with files.staged(tmp_path) as stage:
            (stage / "a").write_text("new")
            (stage / "b").write_text("new")

    with pytest.raises(OutputError, match="--force"):
        write()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "old"}


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=str)
def test_every_rename_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    """Three files, one of them replaced: four renames; afterwards all are new, or all are old."""
    (tmp_path / "b").write_text("old")
    replace: Callable[[Path, Path], Path] = Path.replace
    calls = []

    def counted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == at + 1:
            raise error
        return replace(self, target)

    def write() -> None:
        with files.staged(tmp_path, force=True) as stage:
            for name in ("a", "b", "c.onnx"):
                (stage / name).write_text("new")

    monkeypatch.setattr(Path, "replace", counted)
    if at < 4:
        with pytest.raises((KeyboardInterrupt, OutputError)):
            write()
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "old"}
    else:
        write()
        assert {p.read_text() for p in tmp_path.iterdir()} == {"new"}


def test_a_model_arrives_after_its_side_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace: Callable[[Path, Path], Path] = Path.replace
    order: list[str] = []

    def noted(self: Path, target: Path) -> Path:
        order.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    with files.staged(tmp_path) as stage:
        for name in ("m.onnx", "m.onnx.data", "m.ptq.json", "z.txt"):
            (stage / name).touch()
    assert order == ["m.onnx.data", "m.ptq.json", "z.txt", "m.onnx"]


def test_check_refuses_the_input_under_another_name(tmp_path: Path) -> None:
    model, link = tmp_path / "m.onnx", tmp_path / "link.onnx"
    model.touch()
    link.symlink_to(model)
    with pytest.raises(OutputError, match="input itself"):
        files.check_output(link, force=True, sources=[model])


def test_check_leaves_no_trace(tmp_path: Path) -> None:
    files.check_output(tmp_path / "new.onnx")
    assert list(tmp_path.iterdir()) == []


def test_check_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        files.check_output(Path("/dev/null"), force=True)
    with pytest.raises(OutputError, match="no such folder"):
        files.check_output(tmp_path / "no" / "x")


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(data)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
