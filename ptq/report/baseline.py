"""The baseline of `ptq regress`: what a model was worth when somebody was content with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ptq.errors import UsageError
from ptq.files import check_output, staged
from ptq.report.cpu import Cpu
from ptq.report.manifest import FileRecord
from ptq.report.outcomes import Outcomes

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Speed:
    """Speed-up over the float model in one interleaved run. interval: of the median."""

    speedup: float
    interval: tuple[float, float]
    threads: int


@dataclass(frozen=True)
class Proofs:
    """What holds without running anything, of a model that ptq wrote.

    islands: float islands, "name (op): reason". unproved: steps whose requantisation is not proved
    exact. saturating: steps that may saturate on CPUs without VNNI.
    """

    islands: tuple[str, ...]
    unproved: tuple[str, ...]
    saturating: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """What baseline.json holds; the model's path is relative to the file's folder.

    cpu: where it was measured. speed: None if there was no float model to time against.
    proofs: None for a model that ptq did not write.
    """

    model: FileRecord
    size_bytes: int
    cpu: Cpu
    outcomes: Outcomes
    speed: Speed | None
    proofs: Proofs | None
    schema_version: int = SCHEMA_VERSION


def load_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: there is none, or it is not one that this version reads.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Baseline)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such baseline; make one with --update") from error
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path}: not a baseline ({error}); make one with --update") from error
    if found.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path}: version {found.schema_version}; this ptq reads {SCHEMA_VERSION}: --update"
        )
    return found


def save_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline, replacing an older one.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_output(path, force=True)
    with staged(path.parent, force=True) as stage:
        text = msgspec.json.format(msgspec.json.encode(baseline), indent=1)
        (stage / path.name).write_bytes(text + b"\n")
