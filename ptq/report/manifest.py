"""What the manifest, OUT.ptq.json, says: enough to make the model again."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata

import ptq
from ptq.calib_data import Preprocess
from ptq.integer.program import Certificate
from ptq.recipe import Recipe
from ptq.report.summary import Report

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
class CompiledRecord:
    """How TVM made the library. target: with its CPU. batch: samples a call, None is any number.

    weights, tune, sizes: as `ptq compile` takes them.
    """

    target: str
    batch: int | None
    weights: str = "auto"
    tune: int = 0
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What OUT.ptq.json holds.

    source: the float model's file, if it was one. files: what was written beside the manifest.
    calibration: the samples; None if they were invented, or did not come from files.
    preprocess: what was done to 8-bit pixels of the samples.
    compiled: None if the file is the ONNX model that the recipe's target printed.
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
    compiled: CompiledRecord | None = None
    schema_version: int = SCHEMA_VERSION


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of ptq, Python, the packages that results depend on, and more packages."""
    found = {"ptq": ptq.__version__, "python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
