"""An integer program and its plan in one safetensors file, so that `ptq verify` can read them back.

The structure is JSON in the file's header, the arrays are its tensors; an array used twice is
stored once. A record is {"$": kind, "v": content}; `_CLASSES` lists every class that a file may
name, and nothing else is ever constructed: no pickle, no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ptq.errors import InvalidModelError
from ptq.grid import Grid
from ptq.integer import program as steps
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import Program
from ptq.plan import ActivationPlan, Plan, WeightPlan

VERSION = 2
_HEADER = "ptq.program"


@dataclass(frozen=True)
class Saved:
    """What one file holds."""

    program: Program
    plan: Plan


_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Saved,
        Program,
        Plan,
        Grid,
        ActivationPlan,
        WeightPlan,
        Requantizer,
        steps.Boundary,
        steps.Certificate,
        steps.Ref,
        *steps.Step.__args__,
    )
}

Arrays = dict[str, npt.NDArray[Any]]


def save(program: Program, plan: Plan, path: str | Path) -> None:
    """Write `path`; the same program and plan always give the same bytes."""
    from safetensors.numpy import save as encoded

    writer = _Writer()
    record = {"version": VERSION, "value": writer.encode(Saved(program, plan))}
    header = msgspec.json.encode(record).decode()
    Path(path).write_bytes(encoded(writer.arrays, metadata={_HEADER: header}))


def load(path: str | Path) -> Saved:
    """Read what `save` wrote.

    Raises:
        InvalidModelError: not such a file, a damaged one, or one of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            record = msgspec.json.decode((file.metadata() or {})[_HEADER])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if record["version"] != VERSION:
            raise InvalidModelError(
                f"{path}: version {record['version']}; this ptq reads {VERSION}: quantise again"
            )
        saved = _Reader(arrays).decode(record["value"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InvalidModelError(
            f"{path}: not a program that ptq wrote, or a damaged one ({error}): quantise again"
        ) from error
    if not isinstance(saved, Saved):
        raise InvalidModelError(f"{path}: holds no integer program: quantise again")
    return saved


class _Writer:
    """Turns values into JSON records and collects their arrays."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self._keys: dict[int, str] = {}
        self._alive: list[object] = []  # keeps id() of every stored array unique

    def encode(self, value: Any) -> Any:
        """The record of any value that a program or plan may hold."""
        if value is None or isinstance(value, bool | int | str):
            return int(value) if isinstance(value, ir.DataType) else value
        if isinstance(value, float) and not isinstance(value, np.generic):
            return value if math.isfinite(value) else _record("float", str(value))
        if isinstance(value, tuple | list):
            return [self.encode(item) for item in value]
        if isinstance(value, Mapping):
            return _record("map", {str(k): self.encode(v) for k, v in value.items()})
        if type(value).__name__ in _CLASSES:
            content = {f.name: self.encode(getattr(value, f.name)) for f in fields(value)}
            return _record(type(value).__name__, content)
        return self._leaf(value)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return _record("scalar", self._array(np.asarray(value)))
        if isinstance(value, np.ndarray):
            return _record("array", self._array(value))
        if isinstance(value, ir.Attr):
            data = np.frombuffer(ir.to_proto(value).SerializeToString(), np.uint8)
            return _record("attribute", self._array(data))
        if isinstance(value, ir.TensorProtocol):
            return _record("array", self._array(value.numpy()))
        raise TypeError(f"a program cannot hold a {type(value).__name__}")

    def _array(self, array: npt.NDArray[Any]) -> Any:
        """[key, dtype, shape] of the stored array; texts are stored as they are."""
        if array.dtype.hasobject or array.dtype.kind in "SU":
            return [[_text(item) for item in array.reshape(-1)], "object", list(array.shape)]
        if id(array) not in self._keys:
            key = self._keys[id(array)] = f"a{len(self._keys)}"
            self._alive.append(array)
            whole = np.ascontiguousarray(array).reshape(array.shape)
            self.arrays[key] = whole if _is_native(array.dtype) else whole.reshape(-1).view("u1")
        return [self._keys[id(array)], array.dtype.name, list(array.shape)]


class _Reader:
    """The inverse of `_Writer`."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self._made: dict[tuple[str, str], npt.NDArray[Any]] = {}

    def decode(self, record: Any) -> Any:
        """The value of a record."""
        if isinstance(record, list):
            return tuple(self.decode(item) for item in record)
        if not isinstance(record, dict):
            return record
        kind, content = record["$"], record["v"]
        if kind in _CLASSES:
            return self._instance(_CLASSES[kind], content)
        readers: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "map": lambda v: {key: self.decode(item) for key, item in v.items()},
            "scalar": lambda v: self._array(*v)[()],
            "array": lambda v: self._array(*v),
            "attribute": lambda v: _attribute(self._array(*v)),
        }
        return readers[kind](content)

    def _instance(self, kind: type[Any], content: dict[str, Any]) -> Any:
        values = {name: self.decode(item) for name, item in content.items()}
        if kind is steps.Boundary:
            values["dtype"] = ir.DataType(values["dtype"])
        return kind(**values)

    def _array(self, key: str | list[str], dtype: str, shape: list[int]) -> npt.NDArray[Any]:
        if isinstance(key, list):
            return np.array(key, object).reshape(shape)
        if (key, dtype) not in self._made:
            kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
            found = self.arrays[key]
            found = found if found.dtype == kind else found.view(kind)
            self._made[key, dtype] = found.reshape(shape)
        return self._made[key, dtype]


def _record(kind: str, content: Any) -> dict[str, Any]:
    return {"$": kind, "v": content}


def _is_native(dtype: np.dtype[Any]) -> bool:
    """True if safetensors has the type; int4, float8 and the like are stored as bytes."""
    ours = dtype.type.__module__ == "numpy" and dtype.isnative
    return ours and dtype.kind in "biuf" and dtype.itemsize <= 8


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _attribute(data: npt.NDArray[np.uint8]) -> ir.Attr:
    try:
        proto = onnx.AttributeProto.FromString(data.tobytes())
    except Exception as error:  # protobuf's DecodeError; its class depends on the backend
        raise ValueError(f"an attribute that does not parse: {error}") from error
    return ir.serde.deserialize_attribute(proto)
