"""Sources of arrays by input name: .npz, .npy, folders of them, and test_data_set_* folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ptq.calib_data.arrays import StoredArray, open_npy, open_npz
from ptq.calib_data.source import RawBatch, Source
from ptq.calib_data.spec import Array, InputSpec, common_batch
from ptq.errors import CalibrationError

T = TypeVar("T")
LABEL_NAMES = frozenset({"label", "labels", "y", "y_true", "target", "targets", "score", "scores"})
_LOG = logging.getLogger("ptq")


def npz_source(path: Path, inputs: Sequence[InputSpec]) -> Source:
    """Members by input name; see `match_names` for what else is accepted."""
    return _table_source(str(path), [match_names(open_npz(path), inputs, str(path))], inputs)


def npy_source(path: Path, inputs: Sequence[InputSpec]) -> Source:
    """One array for a model with one input."""
    return _table_source(
        str(path), [match_names({path.stem: open_npy(path)}, inputs, str(path))], inputs
    )


def array_files_source(paths: Sequence[Path], inputs: Sequence[InputSpec]) -> Source:
    """A folder of .npz files (all inputs in each) or of .npy files (a model with one input)."""
    tables = [
        match_names(
            open_npz(path) if path.suffix == ".npz" else {path.stem: open_npy(path)},
            inputs,
            str(path),
        )
        for path in paths
    ]
    return _table_source(str(paths[0].parent), tables, inputs)


def per_input_source(folder: Path, inputs: Sequence[InputSpec]) -> Source:
    """`folder/<input name>/*.npy`; the n-th file of every input belongs to the same batch."""
    found = {
        child.name: sorted(child.glob("*.npy")) for child in folder.iterdir() if child.is_dir()
    }
    files = match_names({key: paths for key, paths in found.items() if paths}, inputs, str(folder))
    counts = {name: len(paths) for name, paths in files.items()}
    if len(set(counts.values())) > 1:
        raise CalibrationError(
            f"{folder}: the inputs have different numbers of files: {counts};"
            " give every input one file a batch"
        )
    tables = [
        {name: open_npy(path) for name, path in zip(files, row, strict=True)}
        for row in zip(*files.values(), strict=True)
    ]
    return _table_source(str(folder), tables, inputs)


def tensor_proto_source(folders: Sequence[Path], inputs: Sequence[InputSpec]) -> Source:
    """ONNX's `test_data_set_*/input_<n>.pb`, n counting the model's inputs."""

    def read() -> Iterator[RawBatch]:
        for folder in folders:
            arrays = dict(
                _tensor_proto(path, int(match[1]), inputs)
                for path in sorted(folder.glob("input_*.pb"))
                if (match := re.fullmatch(r"input_(\d+)", path.stem))
            )
            yield match_names(arrays, inputs, str(folder))

    return Source(str(folders[0].parent), read)


def _tensor_proto(path: Path, index: int, inputs: Sequence[InputSpec]) -> tuple[str, Array]:
    import onnx

    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("its data is in another file, which is not followed")
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # protobuf's DecodeError depends on its backend
        raise CalibrationError(f"{path}: cannot be read as a TensorProto: {error}") from error
    if tensor.name in {spec.name for spec in inputs}:
        return tensor.name, array
    return inputs[index].name if index < len(inputs) else path.stem, array


def match_names(found: Mapping[str, T], inputs: Sequence[InputSpec], where: str) -> dict[str, T]:
    """Give every input what was stored under its name.

    Rules, the first that fits: the exact name; the name with characters that files cannot have
    replaced by `_`; numpy.savez's own `arr_0, arr_1, ...` by position; for a single input, the
    only entry that is not a label. Entries that no input wants are logged and left out.

    Raises:
        CalibrationError: an input without an entry.
    """
    plain = {_plain(key): key for key in found}
    keys = {
        spec.name: spec.name if spec.name in found else plain.get(_plain(spec.name))
        for spec in inputs
    }
    others = [key for key in found if key.lower() not in LABEL_NAMES]
    if None in keys.values() and others == [f"arr_{i}" for i in range(len(inputs))]:
        keys = dict(zip(keys, others, strict=True))
    elif None in keys.values() and len(others) == 1:
        wanting = [spec.name for spec in inputs if spec.name.lower() not in LABEL_NAMES]
        keys |= dict.fromkeys(wanting, others[0]) if len(wanting) == 1 else {}
    matched = {name: found[key] for name, key in keys.items() if key is not None}
    missing = [f"{spec.name} {spec}" for spec in inputs if spec.name not in matched]
    if missing:
        raise CalibrationError(
            f"{where}: no data for the input{'s' * (len(missing) > 1)} {', '.join(missing)};"
            f" found {', '.join(found) or 'nothing'}: name the arrays as the model's inputs"
        )
    ignored = sorted(set(found) - set(keys.values()))
    if ignored:
        _LOG.info("%s: not inputs of the model, ignored: %s", where, ", ".join(ignored))
    return matched


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _table_source(
    name: str, tables: Sequence[Mapping[str, StoredArray]], inputs: Sequence[InputSpec]
) -> Source:
    stacked, _ = common_batch(inputs)
    counts = [_samples(table, inputs, stacked) for table in tables]

    def read() -> Iterator[RawBatch]:
        for table in tables:
            yield from _chunks(table, inputs) if stacked else _steps(table, inputs)

    return Source(name, read, sum(counts))


def _samples(table: Mapping[str, StoredArray], inputs: Sequence[InputSpec], stacked: bool) -> int:
    """How many samples (rows, or whole steps if the inputs cannot be stacked) a table holds."""
    counts = {
        spec.name: _rows(table[spec.name], spec) if stacked else _step_count(table[spec.name], spec)
        for spec in inputs
    }
    if len(set(counts.values()) - (set() if stacked else {1})) > 1:
        where = next(iter(table.values())).path
        raise CalibrationError(f"{where}: the inputs have different numbers of samples: {counts}")
    return max(counts.values())


def _rows(array: StoredArray, spec: InputSpec) -> int:
    """Rows along the batch: an array of one dimension more is a stack of batches."""
    extra = len(array.shape) - spec.rank
    if extra < 0 or not array.shape:
        return 1
    return array.shape[0] * (array.shape[1] if extra == 1 else 1)


def _chunks(table: Mapping[str, StoredArray], inputs: Sequence[InputSpec]) -> Iterator[RawBatch]:
    """Natural batches of about a megabyte for inputs that share the batch dimension."""
    if any(len(table[spec.name].shape) != spec.rank for spec in inputs):
        yield from _steps(table, inputs)
        return
    step = min(table[spec.name].chunk_rows() for spec in inputs)
    streams = [table[spec.name].rows(step) for spec in inputs]
    for parts in zip(*streams, strict=True):
        yield {spec.name: part for spec, part in zip(inputs, parts, strict=True)}


def _step_count(array: StoredArray, spec: InputSpec) -> int:
    extra = len(array.shape) - spec.rank
    if extra < 0 or not array.shape:
        return 1
    return array.shape[0] if extra else array.shape[0] // (spec.shape[0] or 1)


def _steps(table: Mapping[str, StoredArray], inputs: Sequence[InputSpec]) -> Iterator[RawBatch]:
    """One element of each input a step; an input with a single step is repeated."""
    total = max(_step_count(table[spec.name], spec) for spec in inputs)
    streams = [_step_stream(table[spec.name], spec, total) for spec in inputs]
    for parts in zip(*streams, strict=True):
        yield {spec.name: part for spec, part in zip(inputs, parts, strict=True)}


def _step_stream(array: StoredArray, spec: InputSpec, total: int) -> Iterator[Array]:
    extra = len(array.shape) - spec.rank
    if extra < 0 or not array.shape:
        yield from [array.whole()] * total
        return
    size = 1 if extra else spec.shape[0] or 1
    repeats = total if _step_count(array, spec) == 1 else 1
    for part in array.rows(size):
        for _ in range(repeats):
            yield part[0] if extra else part
