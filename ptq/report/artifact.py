"""A quantised model on disk: OUT.onnx, and beside it what is needed to verify it.

    OUT.onnx              the model (and OUT.onnx.data above 2 GB)
    OUT.ptq.json          the manifest: hashes, recipe, versions, seed, certificates, report
    OUT.ptq.safetensors   the integer program and the plan

No time stamp is written: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import msgspec
import onnx_ir as ir

import ptq
from ptq.calib_data import Preprocess
from ptq.errors import InvalidModelError
from ptq.files import check_output, sha256, staged
from ptq.integer import serial
from ptq.integer.program import Certificate
from ptq.recipe import Recipe
from ptq.report.session import LARGEST_PROTO_BYTES, size_bytes
from ptq.report.summary import Quantized, Report, make_report

SCHEMA_VERSION = 1
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxsim")


@dataclass(frozen=True)
class FileRecord:
    """A file that the manifest speaks of; the path is relative to the manifest's folder."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class DataRecord:
    """The calibration samples: a path relative to the manifest's folder, or one with `:function`.

    sha256: of the file, or of all files of a folder with their names.
    """

    source: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What OUT.ptq.json holds.

    source: the float model's file, if it was one. files: what was written beside the manifest.
    calibration: the samples; None if they were invented, or did not come from files.
    preprocess: what was done to 8-bit pixels of the samples.
    """

    source: FileRecord | None
    files: tuple[FileRecord, ...]
    recipe: Recipe
    seed: int
    preprocess: Preprocess | None
    versions: dict[str, str]
    certificates: tuple[Certificate, ...]
    report: Report
    calibration: DataRecord | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class SidePaths:
    """The files of an artifact whose model is `model`."""

    model: Path

    @property
    def _stem(self) -> str:
        name = self.model.name
        return name.removesuffix(".onnx") if name.endswith(".onnx") else name

    @property
    def manifest(self) -> Path:
        """OUT.ptq.json."""
        return self.model.with_name(f"{self._stem}.ptq.json")

    @property
    def program(self) -> Path:
        """OUT.ptq.safetensors."""
        return self.model.with_name(f"{self._stem}.ptq.safetensors")

    @property
    def data(self) -> Path:
        """OUT.onnx.data."""
        return self.model.with_name(f"{self.model.name}.data")


def check(path: Path, *, force: bool = False, sources: Iterable[Path] = ()) -> None:
    """Fail now if the model or one of its side files could not be written later.

    Raises:
        OutputError: what stands in the way.
    """
    paths = SidePaths(path)
    for output in (paths.model, paths.manifest, paths.program):
        check_output(output, force=force, sources=sources)


def save(
    result: Quantized,
    path: str | Path,
    *,
    force: bool = False,
    report: Report | None = None,
    source: Path | None = None,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write the model and its side files, all or none.

    report: with measurements, else one is made without. source: the float model's file.
    write: writes the model's file, if that is not what the target printed.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    out = Path(path)
    with staged(out.parent, force=force) as stage:
        staged_paths = SidePaths(stage / out.name)
        if write is None:
            _save_model(result.model, staged_paths)
        else:
            write(staged_paths.model)
        serial.save(result.program, result.plan, staged_paths.program)
        manifest = Manifest(
            source=_source_record(source, out.parent),
            files=tuple(_records(stage)),
            recipe=result.recipe,
            seed=result.recipe.seed,
            preprocess=result.preprocess,
            versions=versions(),
            certificates=result.program.certificates,
            report=without_clock(report or make_report(result, source)),
            calibration=_data_record(result.calib, out.parent),
        )
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        staged_paths.manifest.write_bytes(text)


def save_again(
    saved: serial.Saved,
    manifest: Manifest,
    out: Path,
    write: Callable[[Path], None],
    *,
    force: bool = False,
    source: Path | None = None,
) -> None:
    """Write the same network in another form, with the side files that belong to it.

    write: writes the model's file. source: the float model's file, if it is still there.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    with staged(out.parent, force=force) as stage:
        paths = SidePaths(stage / out.name)
        write(paths.model)
        serial.save(saved.program, saved.plan, paths.program)
        changed = replace(
            manifest,
            source=_source_record(source, out.parent) or manifest.source,
            files=tuple(_records(stage)),
            versions=versions(),
        )
        paths.manifest.write_bytes(msgspec.json.format(msgspec.json.encode(changed), indent=1))


def _records(folder: Path) -> list[FileRecord]:
    return [FileRecord(p.name, sha256(p), p.stat().st_size) for p in sorted(folder.iterdir())]


def _save_model(model: ir.Model, paths: SidePaths) -> None:
    if size_bytes(model) > LARGEST_PROTO_BYTES:
        ir.save(model, paths.model, external_data=paths.data.name)
    else:
        paths.model.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _source_record(source: Path | None, folder: Path) -> FileRecord | None:
    if source is None:
        return None
    relative = os.path.relpath(source.resolve(), folder.resolve())
    return FileRecord(relative, sha256(source), source.stat().st_size)


def _data_record(calib: str | None, folder: Path) -> DataRecord | None:
    if calib is None:
        return None
    path, _ = _split_function(calib)
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return DataRecord(relative + calib[len(str(path)) :], data_hash(calib))


def data_hash(calib: str) -> str:
    """SHA-256 of a file, of the file of `file.py:function`, or of a folder's names and files."""
    path, _ = _split_function(calib)
    if not path.is_dir():
        return sha256(path)
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    lines = (f"{name} {sha256(path / name)}\n" for name in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _split_function(calib: str) -> tuple[Path, str]:
    """`file.py:function` as its two parts; another path as it is."""
    if Path(calib).exists():
        return Path(calib), ""
    path, _, function = calib.rpartition(":")
    return (Path(path), function) if path else (Path(calib), "")


def versions() -> dict[str, str]:
    """Versions of ptq, Python and the packages that results depend on."""
    found = {"ptq": ptq.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def load_manifest(model: Path) -> Manifest:
    """Read the manifest beside a quantised model.

    Raises:
        InvalidModelError: there is none, or it is not one that this version reads.
    """
    path = SidePaths(model).manifest
    if not path.exists():
        raise InvalidModelError(
            f"{model}: {path.name} is not beside it; wanted a model that `ptq quantize` wrote, "
            "with its side files"
        )
    return read_manifest(path)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InvalidModelError: it is not one that this version reads.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise InvalidModelError(f"{path}: not a manifest that this ptq reads ({error})") from error


def is_quantized(model: Path) -> bool:
    """True if a manifest lies beside the model."""
    return SidePaths(model).manifest.is_file()


def load_program(model: Path) -> serial.Saved:
    """Read the integer program and plan beside a quantised model.

    Raises:
        InvalidModelError: missing, damaged, or of another version.
    """
    return serial.load(SidePaths(model).program)


def float_source(model: Path, manifest: Manifest) -> Path | None:
    """The float model's file, if the manifest knows one and it is still there, unchanged."""
    if manifest.source is None:
        return None
    path = model.parent / manifest.source.path
    return path if path.is_file() and sha256(path) == manifest.source.sha256 else None


def without_clock(report: Report) -> Report:
    """The report without the stages' wall times: the same run writes the same bytes."""
    return replace(report, ladder=tuple(replace(rung, seconds=0.0) for rung in report.ladder))
