"""Folders of images, with the class read from the file or folder name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ptq.calib_data.calibration import choose
from ptq.calib_data.pixels import IMAGE_SUFFIXES, decode
from ptq.calib_data.preprocess import Preprocess, read_preprocess
from ptq.calib_data.source import RawBatch, Source
from ptq.calib_data.spec import InputSpec
from ptq.errors import CalibrationError

SIDECARS = ("preprocess.toml", "preprocess.json", "preprocessor_config.json")


def find_images(folder: Path) -> list[Path]:
    """Image files in `folder` and its subfolders, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def sidecar(folder: Path) -> Preprocess | None:
    """The preprocess file that lies in the folder, if one does."""
    for name in SIDECARS:
        if (folder / name).is_file():
            return read_preprocess(folder / name)
    return None


def image_source(
    folder: Path,
    paths: Sequence[Path],
    inputs: Sequence[InputSpec],
    *,
    limit: int | None,
    seed: int,
    label: InputSpec | None = None,
) -> Source:
    """One image a sample, decoded when it is its turn; with `label` also its class index."""
    if len(inputs) != 1 or not inputs[0].is_image:
        wanted = ", ".join(f"{spec.name} {spec}" for spec in inputs)
        raise CalibrationError(
            f"{folder}: a folder of images feeds one image input; the model wants {wanted}:"
            " give an .npz with all of them"
        )
    kept = [paths[i] for i in choose(len(paths), len(paths) if limit is None else limit, seed)]
    classes = class_indices(folder, paths) if label else {}

    def read() -> Iterator[RawBatch]:
        for path in kept:
            batch: dict[str, object] = {inputs[0].name: decode(path)}
            if label is not None:
                batch[label.name] = np.asarray([classes[path]], np.int64)
            yield batch

    return Source(str(folder), read, len(kept), limited=True)


def class_indices(folder: Path, paths: Sequence[Path]) -> dict[Path, int]:
    """Class of each image.

    In subfolders: the folder's number if all are numbers, else its place in sorted order. Flat:
    the number that the file name begins with (`007.jpg`, `7_a.png`).

    Raises:
        CalibrationError: a flat file name without a number.
    """
    folders = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    if folders:
        numeric = all(name.isdigit() for name in folders)
        index = {name: int(name) if numeric else i for i, name in enumerate(folders)}
        return {path: index[path.relative_to(folder).parts[0]] for path in paths}
    classes: dict[Path, int] = {}
    for path in paths:
        match = re.match(r"\d+", path.stem)
        if match is None:
            raise CalibrationError(
                f"{path}: no class index; name files <class index>.jpg or use one folder a class"
            )
        classes[path] = int(match[0])
    return classes
