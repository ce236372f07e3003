"""A quantised model on disk: OUT.onnx, and beside it what is needed to verify it.

    OUT.onnx              the model (and OUT.onnx.data above 2 GB)
    OUT.ptq.json          the manifest: hashes, recipe, versions, seed, certificates, report
    OUT.ptq.safetensors   the integer program and the plan

No time stamp is written: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from ptq.errors import InvalidModelError, UnsupportedModelError
from ptq.files import check_output, sha256, staged
from ptq.integer import serial
from ptq.report.manifest import CompiledRecord, DataRecord, FileRecord, Manifest, versions
from ptq.report.session import LARGEST_PROTO_BYTES, has_external, size_bytes
from ptq.report.summary import Deployed, Quantized, Report, make_report

_COMPILERS = ("apache-tvm",)


@dataclass(frozen=True)
class Library:
    """A compiled form of the model. write: writes its file. record: how it was made."""

    write: Callable[[Path], None]
    record: CompiledRecord


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
    library: Library | None = None,
) -> None:
    """Write the model and its side files, all or none.

    report: with measurements, else one is made without. source: the float model's file.
    library: written instead of what the target printed.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    out = Path(path)
    with staged(out.parent, force=force) as stage:
        staged_paths = SidePaths(stage / out.name)
        if library is None:
            _save_model(result.model, staged_paths)
        else:
            library.write(staged_paths.model)
        serial.save(result.program, result.plan, staged_paths.program)
        made = report or make_report(result, source)
        manifest = replace(
            _manifest(result, made, stage, out.parent, source),
            versions=versions(_COMPILERS if library else ()),
            certificates=result.program.certificates,
            compiled=None if library is None else library.record,
        )
        _write_manifest(manifest, staged_paths)


def save_model(
    result: Deployed,
    path: str | Path,
    report: Report,
    *,
    force: bool = False,
    source: Path | None = None,
) -> None:
    """Write a model that has no integer program, and its manifest, both or none.

    Its weights stay in a file of their own if the float model's were.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    out = Path(path)
    with staged(out.parent, force=force) as stage:
        paths = SidePaths(stage / out.name)
        if has_external(result.float_model):
            ir.save(result.model, paths.model, external_data=paths.data.name)
        else:
            _save_model(result.model, paths)
        _write_manifest(_manifest(result, report, stage, out.parent, source), paths)


def _manifest(
    result: Deployed, report: Report, stage: Path, folder: Path, source: Path | None
) -> Manifest:
    """What every manifest says. stage: with the files written so far; folder: where they go."""
    return Manifest(
        source=_source_record(source, folder),
        files=tuple(_records(stage)),
        recipe=result.recipe,
        seed=result.recipe.seed,
        preprocess=result.preprocess,
        versions=versions(),
        certificates=(),
        report=without_clock(report),
        calibration=_data_record(result.calib, folder),
    )


def _write_manifest(manifest: Manifest, paths: SidePaths) -> None:
    paths.manifest.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def save_again(
    saved: serial.Saved,
    manifest: Manifest,
    out: Path,
    library: Library,
    *,
    force: bool = False,
    source: Path | None = None,
) -> None:
    """Write the same network as a library, with the side files that belong to it.

    source: the float model's file, if it is still there.

    Raises:
        OutputError: not writable, disk full, or a file exists and `force` is not set.
    """
    with staged(out.parent, force=force) as stage:
        paths = SidePaths(stage / out.name)
        library.write(paths.model)
        serial.save(saved.program, saved.plan, paths.program)
        changed = replace(
            manifest,
            source=_source_record(source, out.parent) or manifest.source,
            files=tuple(_records(stage)),
            versions=versions(_COMPILERS),
            compiled=library.record,
        )
        _write_manifest(changed, paths)


def _records(folder: Path) -> list[FileRecord]:
    return [FileRecord(p.name, sha256(p), p.stat().st_size) for p in sorted(folder.iterdir())]


def _save_model(model: ir.Model, paths: SidePaths) -> None:
    """What still lies in the float model's files, such as a table of indices, goes with it."""
    if size_bytes(model) > LARGEST_PROTO_BYTES:
        ir.save(model, paths.model, external_data=paths.data.name)
    else:
        whole = ir.external_data.load_to_model(model.clone())
        paths.model.write_bytes(ir.to_proto(whole).SerializeToString(deterministic=True))


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


def is_integer(model: Path) -> bool:
    """True if an integer program belongs to the model: it is quantised, not in its weights only."""
    return is_quantized(model) and not load_manifest(model).recipe.weights_only


def load_program(model: Path) -> serial.Saved:
    """Read the integer program and plan beside a quantised model.

    Raises:
        InvalidModelError: missing, damaged, or of another version.
        UnsupportedModelError: the model has none.
    """
    if is_quantized(model) and not is_integer(model):
        raise UnsupportedModelError(
            f"{model}: its weights only were quantised and it computes in floats, so it has no "
            "integer program to read; use `ptq compare` with the float model, or `ptq eval`"
        )
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
