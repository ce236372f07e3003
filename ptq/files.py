"""Writing results so that a run that fails or is interrupted leaves no file behind.

Everything is written under its final name into a hidden folder beside the destination, flushed to
disk, and renamed into place; an interruption in the middle of the renames puts the old files back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ptq.errors import OutputError

_CHUNK_BYTES = 1 << 20


def check_output(path: Path, *, force: bool = False, sources: Iterable[Path] = ()) -> None:
    """Fail now if `path` could not be written later.

    force: an existing file may be replaced. sources: files that must never be.

    Raises:
        OutputError: it exists, is one of the sources, or its folder cannot be written.
    """
    for source in sources:
        if path.resolve() == source.resolve():
            raise OutputError(f"{path}: is the input itself; give another name with -o")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; wanted a file name such as {path / 'out.onnx'}")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file; give another name with -o")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; use --force to replace it, or another -o")
    _check_folder(path.parent)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; make it first")
    try:
        Path(tempfile.mkdtemp(prefix=".ptq-", dir=folder)).rmdir()
    except OSError as error:
        raise OutputError(_cannot_write(folder, error)) from error


@contextlib.contextmanager
def staged(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder inside `folder`; its files are moved to `folder` when the block ends.

    Either all files arrive or none: on any exception, Ctrl-C included, `folder` is as it was.
    A model (.onnx, .so) arrives last, so that its side files are there when it is.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    try:
        stage = Path(tempfile.mkdtemp(prefix=".ptq-", dir=folder))
    except OSError as error:
        raise OutputError(_cannot_write(folder, error)) from error
    try:
        yield stage
        names = sorted(
            (p.name for p in stage.iterdir()), key=lambda n: (n.endswith((".onnx", ".so")), n)
        )
        _require_free(folder, names, force)
        mode = _usual_mode(stage)
        for name in names:
            (stage / name).chmod(mode)
            _flush(stage / name)
        _move(stage, folder, names)
        _flush(folder)
    except OSError as error:
        raise OutputError(_cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _require_free(folder: Path, names: Iterable[str], force: bool) -> None:
    taken = [name for name in names if (folder / name).exists()]
    if taken and not force:
        raise OutputError(f"{folder / taken[0]}: exists already; use --force to replace it")


def _move(stage: Path, folder: Path, names: list[str]) -> None:
    """Rename every file into place; on any exception put everything back."""
    aside = stage / "replaced"
    aside.mkdir()
    started: list[str] = []
    try:
        for name in names:
            started.append(name)
            if (folder / name).exists():
                (folder / name).replace(aside / name)
            (stage / name).replace(folder / name)
    except BaseException:
        for name in started:
            if not (stage / name).exists():
                (folder / name).unlink(missing_ok=True)
            if (aside / name).exists():
                (aside / name).replace(folder / name)
        raise


def _usual_mode(folder: Path) -> int:
    """Permissions of a file that is simply opened for writing, whatever library wrote ours."""
    probe = folder / "mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        why = f"{error.strerror}; make room, or write elsewhere with -o"
    else:
        why = f"{error.strerror or error}; check its permissions, or write elsewhere with -o"
    return f"{folder}: cannot be written: {why}. Nothing was left there"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
