"""Opening calibration data, whatever it is: `open_calibration` and `labelled`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptq.calib_data.arrays import open_npz
from ptq.calib_data.calibration import Calibration
from ptq.calib_data.images import find_images, image_source, sidecar
from ptq.calib_data.objects import Transform, function_source, object_source
from ptq.calib_data.preprocess import Preprocess, parse_preprocess
from ptq.calib_data.source import Source
from ptq.calib_data.spec import Array, Batch, InputSpec, common_batch
from ptq.calib_data.stored import (
    LABEL_NAMES,
    array_files_source,
    npy_source,
    npz_source,
    per_input_source,
    tensor_proto_source,
)
from ptq.calib_data.synthetic import SAMPLES, synthetic_source
from ptq.errors import CalibrationError

_LOG = logging.getLogger("ptq")


def open_calibration(
    source: Any,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | str | None = None,
    transform: Transform | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Open samples for a model with these inputs and check the first one.

    source: a path (.npz, .npy, a folder of images, of `input_name/*.npy`, of .npz or .npy files,
        or of `test_data_set_*`), `file.py:function`, an object with get_next(), an iterable of
        dicts, tuples or arrays, a torch DataLoader, a function returning one of these, or None:
        invented samples.
    preprocess: what to do with 8-bit pixels (see `ptq.calib_data.preprocess`); a folder of
        images may hold it in preprocess.toml, preprocess.json or preprocessor_config.json.
    transform: applied to every item of an iterable.
    limit: at most this many samples, chosen with `seed`.

    Raises:
        CalibrationError: nothing usable there, or the first sample does not fit the model.
    """
    inputs = tuple(inputs)
    if limit is not None and limit < 1:
        raise CalibrationError(f"calibration: got a limit of {limit} samples; wanted at least 1")
    spec = parse_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    if spec is None and isinstance(source, str | Path) and Path(source).is_dir():
        spec = sidecar(Path(source))
    opened = open_source(source, inputs, transform=transform, limit=limit, seed=seed)
    calibration = Calibration(opened, inputs, spec, limit, seed)
    next(calibration.batches(1))  # fails here, not in the middle of a run
    return calibration


def open_source(
    source: Any,
    inputs: Sequence[InputSpec],
    *,
    transform: Transform | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """The samples before they are preprocessed and checked; see `open_calibration`."""
    if source is None:
        _LOG.warning(
            "no calibration data: ranges are measured on invented samples;"
            " give real samples (--calib) for the accuracy that this tool can reach"
        )
        return synthetic_source(inputs, limit or SAMPLES, seed)
    if isinstance(source, str | Path):
        return _path_source(str(source), inputs, transform, limit, seed)
    return object_source(source, inputs, transform)


def labelled(
    path: str | Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | str | None = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[Batch, Array]]:
    """Yield (batch, labels [N]) of an .npz with `labels` or `y`, or of a folder of images.

    Raises:
        CalibrationError: no labels there, or a sample that does not fit the model.
    """
    path = Path(path)
    spec = parse_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    if path.is_dir():
        label = InputSpec("\0label", np.dtype(np.int64), (common_batch(inputs)[1],))
        images = find_images(path)
        if not images:
            raise _nothing(path)
        source = image_source(path, images, inputs, limit=limit, seed=seed, label=label)
        spec = spec or sidecar(path)
    else:
        label = _label_spec(path, common_batch(inputs)[1])
        source = npz_source(path, [*inputs, label])
    data = Calibration(source, (*inputs, label), spec, limit, seed)
    for batch in data.batches(batch_size):
        labels = batch.pop(label.name)
        yield batch, labels


def _label_spec(path: Path, batch: int | None) -> InputSpec:
    arrays = open_npz(path) if path.suffix == ".npz" else {}
    for name, array in arrays.items():
        if name.lower() in LABEL_NAMES:
            return InputSpec(name, array.dtype, (batch, *array.shape[1:]))
    raise CalibrationError(
        f"{path}: no labels; found {', '.join(arrays) or 'no arrays'}, wanted an .npz with one of"
        f" {', '.join(sorted(LABEL_NAMES))}, or a folder of images"
    )


def _path_source(
    text: str,
    inputs: Sequence[InputSpec],
    transform: Transform | None,
    limit: int | None,
    seed: int,
) -> Source:
    path = Path(text)
    if path.is_dir():
        return _folder_source(path, inputs, limit, seed)
    if ".py:" in text:
        return function_source(text, inputs, transform)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    readers: dict[str, Callable[[Path, Sequence[InputSpec]], Source]] = {
        ".npz": npz_source,
        ".npy": npy_source,
    }
    if path.suffix.lower() not in readers:
        raise CalibrationError(
            f"{path}: got a {path.suffix or 'nameless'} file; wanted .npz, .npy, a folder,"
            " or file.py:function"
        )
    return readers[path.suffix.lower()](path, inputs)


def _folder_source(
    folder: Path, inputs: Sequence[InputSpec], limit: int | None, seed: int
) -> Source:
    """The first kind of content that is there: test data, arrays by input, arrays, images."""
    sets = [path.parent for path in sorted(folder.glob("test_data_set_*/input_0.pb"))]
    sets = sets or ([folder] if (folder / "input_0.pb").is_file() else [])
    if sets:
        return tensor_proto_source(sets, inputs)
    if next(folder.glob("*/*.npy"), None):
        return per_input_source(folder, inputs)
    for pattern in ("*.npz", "*.npy"):
        if files := sorted(folder.glob(pattern)):
            return array_files_source(files, inputs)
    if images := find_images(folder):
        return image_source(folder, images, inputs, limit=limit, seed=seed)
    raise _nothing(folder)


def _nothing(folder: Path) -> CalibrationError:
    found = sorted(path.name for path in folder.iterdir())[:5]
    return CalibrationError(
        f"{folder}: nothing to calibrate with; found {', '.join(found) or 'an empty folder'};"
        " wanted images, .npz, .npy, <input name>/*.npy, or test_data_set_*/input_*.pb"
    )
