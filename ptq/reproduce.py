"""Quantise again from a manifest, and see whether the same bytes come out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ptq.compilation import save_compiled
from ptq.errors import GateError, PtqError, UsageError
from ptq.files import sha256
from ptq.passes.context import Progress
from ptq.pipeline import quantize
from ptq.report import artifact
from ptq.report.manifest import CompiledRecord, DataRecord, FileRecord, Manifest, versions
from ptq.result import Result
from ptq.targets.tvm.module import CompileOptions
from ptq.weights_only import quantize_weights

_LOG = logging.getLogger("ptq")


def redo(
    model: Path,
    manifest: Path,
    out: Path,
    *,
    calib: str | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[str, ...]:
    """Quantise `model` to `out` exactly as the manifest says; names of the files that differ.

    calib: where its samples are now; None is where the manifest saw them.

    Raises:
        UsageError: the model or the samples are not those of the manifest.
    """
    known = artifact.read_manifest(manifest)
    _same_model(model, known.source, manifest)
    data = _same_data(known.calibration, calib, manifest)
    _warn_of_versions(known)
    recipe, preprocess = known.recipe, known.preprocess
    if recipe.weights_only:
        weights = quantize_weights(model, data, recipe, preprocess=preprocess, progress=progress)
        weights.save(out, force=force)
    else:
        result = quantize(model, data, recipe, preprocess=preprocess, progress=progress)
        _save(result, known.compiled, out, model, force)
    return differing(artifact.load_manifest(out), known)


def _save(result: Result, made: CompiledRecord | None, out: Path, model: Path, force: bool) -> None:
    """Write what the target printed, or the library that was made of it."""
    if made is None:
        artifact.save(result, out, force=force, source=model)
        return
    how = CompileOptions(
        made.target, made.batch, weights=made.weights, tune=made.tune, sizes=made.sizes
    )
    save_compiled(result, out, how, force=force, source=model)


def differing(made: Manifest, wanted: Manifest) -> tuple[str, ...]:
    """Names of the wanted files whose content is another; a renamed model is the same."""
    found = sorted(made.files, key=_kind)
    return tuple(
        record.path
        for record, other in zip(sorted(wanted.files, key=_kind), found, strict=True)
        if record.sha256 != other.sha256
    )


def _kind(record: FileRecord) -> str:
    """Its last suffix, which tells the files of one artifact apart."""
    return Path(record.path).suffix


def _same_model(model: Path, source: FileRecord | None, manifest: Path) -> None:
    if source is None:
        raise UsageError(f"{manifest}: its model did not come from a file, so it cannot be redone")
    if sha256(model) != source.sha256:
        raise UsageError(
            f"{model}: not the float model of {manifest}, which was {source.path} (sha256 "
            f"{source.sha256})"
        )


def _same_data(record: DataRecord | None, given: str | None, manifest: Path) -> str | None:
    """Where the samples are.

    Raises:
        UsageError: they are not there, or have changed.
    """
    if record is None:
        if given is not None:
            raise UsageError(f"--calib: {manifest} was made without samples")
        return None
    where = given or os.path.normpath(manifest.parent / record.source)
    try:
        same = artifact.data_hash(where) == record.sha256
    except OSError as error:
        raise UsageError(f"{where}: the samples of {manifest} are not there: --calib") from error
    if not same:
        raise UsageError(f"{where}: not the samples of {manifest}; they have changed")
    return where


def _warn_of_versions(manifest: Manifest) -> None:
    here = versions(manifest.versions.keys() - versions().keys())
    other = [
        f"{name} {version} (here {here.get(name, 'not installed')})"
        for name, version in manifest.versions.items()
        if here.get(name) != version
    ]
    if other:
        _LOG.warning("made with %s: the bytes may differ", ", ".join(other))


def check_reproducible(model: Path, out: Path) -> None:
    """Redo `out` from its own manifest in a fresh process, where nothing is left of this one.

    Raises:
        GateError: other bytes come out.
        PtqError: the run failed.
    """
    manifest = artifact.SidePaths(out).manifest
    with tempfile.TemporaryDirectory(prefix="ptq-again-") as folder:
        command = [sys.executable, "-P", "-m", "ptq.cli", "quantize", str(model), "--quiet"]
        command += ["--from-manifest", str(manifest), "-o", str(Path(folder) / out.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == GateError.exit_code:
        raise GateError(f"{out}: not reproducible: {done.stderr.strip()}")
    if done.returncode:
        raise PtqError(f"{out}: quantising again failed: {done.stderr.strip()[-400:]}")
