"""Sources that are Python objects: get_next() readers, iterables, loaders, file.py:function."""

from __future__ import annotations

import importlib.util
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptq.calib_data.source import RawBatch, Source
from ptq.calib_data.spec import InputSpec
from ptq.calib_data.stored import match_names
from ptq.errors import CalibrationError

Transform = Callable[[Any], Any]


def object_source(
    thing: Any, inputs: Sequence[InputSpec], transform: Transform | None = None
) -> Source:
    """Anything with get_next(), a function that returns an iterable, or an iterable.

    Items are dicts by input name, tuples in the order of the inputs (more elements, such as
    labels, are ignored), or arrays; torch tensors count as arrays. What can be read only once
    (a generator) is spooled to a temporary file on disk while it is read the first time.
    """
    name = type(thing).__name__
    items = _restartable(thing, inputs, name)

    def read() -> Iterator[RawBatch]:
        for index, item in enumerate(items()):
            yield _by_name(
                item if transform is None else transform(item), inputs, f"{name}: batch {index}"
            )

    return Source(name, read)


def function_source(text: str, inputs: Sequence[InputSpec], transform: Transform | None) -> Source:
    """`file.py:function`: import the file, call the function, use what it returns.

    Raises:
        CalibrationError: no such file or function, or it raises.
    """
    path, _, attribute = text.rpartition(":")
    function = _load(Path(path), attribute)
    source = object_source(function, inputs, transform)
    return Source(text, source.read)


def _load(path: Path, attribute: str) -> Callable[[], Any]:
    spec = importlib.util.spec_from_file_location(f"ptq_calibration_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CalibrationError(f"{path}: no such Python file; write file.py:function")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CalibrationError(f"{path}: {type(error).__name__} on import: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise CalibrationError(
            f"{path}: no function {attribute!r}; it defines {', '.join(public) or 'nothing'}"
        )
    return function  # type: ignore[no-any-return]


def _restartable(thing: Any, inputs: Sequence[InputSpec], name: str) -> Callable[[], Iterator[Any]]:
    """A function that starts the items from the beginning each time it is called."""
    if hasattr(thing, "get_next"):
        if hasattr(thing, "rewind"):
            return _Rewinding(thing)
        return _Spool(iter(thing.get_next, None), inputs, name).__iter__
    if isinstance(thing, Iterator):
        return _Spool(thing, inputs, name).__iter__
    if isinstance(thing, Mapping):
        return lambda: iter([thing])
    if isinstance(thing, Iterable):
        return lambda: iter(thing)
    if hasattr(thing, "__getitem__") and hasattr(thing, "__len__"):  # a torch Dataset
        return lambda: (thing[index] for index in range(len(thing)))
    if callable(thing):
        return lambda: iter(_called(thing, name))
    raise CalibrationError(
        f"calibration: got {name}; wanted a path, file.py:function, an object with get_next(),"
        " an iterable of dicts, tuples or arrays, or None"
    )


def _called(function: Callable[[], Any], name: str) -> Iterable[Any]:
    """What a function (or the factory it returns) yields."""
    result = function()
    if callable(result) and not isinstance(result, Iterable) and not hasattr(result, "get_next"):
        result = result()
    if hasattr(result, "get_next"):
        return iter(result.get_next, None)
    if isinstance(result, Mapping):
        return [result]
    if not isinstance(result, Iterable):
        raise CalibrationError(f"{name}: returned {type(result).__name__}; wanted an iterable")
    return result


class _Rewinding:
    """onnxruntime's CalibrationDataReader with a rewind(): rewound for every pass but the first."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._started = False

    def __call__(self) -> Iterator[Any]:
        if self._started:
            self._reader.rewind()
        self._started = True
        return iter(self._reader.get_next, None)


class _Spool:
    """Makes something that can be read only once re-readable, by a temporary file."""

    def __init__(self, items: Iterator[Any], inputs: Sequence[InputSpec], name: str) -> None:
        self._items = items
        self._inputs = inputs
        self._name = name
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the spool)
        self._offsets: list[int] = []
        weakref.finalize(self, self._file.close)

    def __iter__(self) -> Iterator[RawBatch]:
        index = 0
        while True:
            if index == len(self._offsets):
                item = next(self._items, None)
                if item is None:
                    return
                self._append(_by_name(item, self._inputs, f"{self._name}: batch {index}"))
            yield self._read(index)
            index += 1

    def _append(self, batch: RawBatch) -> None:
        offset = self._file.seek(0, 2)
        for spec in self._inputs:
            np.lib.format.write_array(self._file, as_array(batch[spec.name]), allow_pickle=False)
        self._offsets.append(offset)

    def _read(self, index: int) -> RawBatch:
        self._file.seek(self._offsets[index])
        return {
            spec.name: np.lib.format.read_array(self._file, allow_pickle=False)
            for spec in self._inputs
        }


def _by_name(item: Any, inputs: Sequence[InputSpec], where: str) -> RawBatch:
    if isinstance(item, Mapping) or hasattr(item, "keys"):  # also transformers' BatchEncoding
        return match_names({str(key): item[key] for key in item.keys()}, inputs, where)  # noqa: SIM118
    if isinstance(item, tuple | list) and item and not np.isscalar(item[0]):
        if len(item) < len(inputs):
            raise CalibrationError(
                f"{where}: got {len(item)} arrays, wanted {len(inputs)}:"
                f" {', '.join(spec.name for spec in inputs)}"
            )
        return {spec.name: value for spec, value in zip(inputs, item, strict=False)}
    if len(inputs) == 1:
        return {inputs[0].name: item}
    raise CalibrationError(
        f"{where}: got one {type(item).__name__} for a model with {len(inputs)} inputs; yield dicts"
        f" with {', '.join(spec.name for spec in inputs)}"
    )


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array from an array, a torch tensor (any device) or nested lists of numbers."""
    for method in ("detach", "cpu", "numpy"):
        if isinstance(value, np.ndarray):
            break
        value = getattr(value, method, lambda value=value: value)()
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.kind not in "biufV":
        raise CalibrationError(
            f"calibration: got {type(value).__name__} of {array.dtype}; wanted an array of numbers"
        )
    return array
