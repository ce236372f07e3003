"""Load a float model from whatever the caller has, checked before anything else reads it."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
import onnx_ir as ir

from ptq.errors import InvalidModelError, UnsupportedModelError

Source = str | Path | bytes | onnx.ModelProto | ir.Model


def load(source: Source) -> ir.Model:
    """Read a float ONNX model; weights beside the file stay on disk, memory-mapped.

    Raises:
        InvalidModelError: not an ONNX model, or one that breaks ONNX's rules.
        UnsafeModelError: the file reaches outside its folder, or lies about its sizes.
        UnsupportedModelError: a valid thing that this function cannot read.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, None)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_proto(_parse(memoryview(source), "model bytes"), None)
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    raise UnsupportedModelError(_how_to_export(source))


def _from_path(path: Path) -> ir.Model:
    if not path.exists():
        raise InvalidModelError(f"{path}: no such file. Give the path of an .onnx file.")
    if path.is_dir():
        raise InvalidModelError(f"{path}: a folder, not a file. Give the path of an .onnx file.")
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise InvalidModelError(f"{path}: the file is empty. Export or download it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as view:
                proto = _parse(view, str(path))
    return _from_proto(proto, path)


def _parse(data: memoryview, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class depends on the backend
        raise InvalidModelError(
            f"{where}: not an ONNX model, or one cut short ({len(data)} bytes that do not parse). "
            f"Export or download it again."
        ) from error
    if not proto.HasField("graph"):
        raise InvalidModelError(
            f"{where}: parses as ONNX but has no graph. Export or download it again."
        )
    return proto


def _from_proto(proto: onnx.ModelProto, path: Path | None) -> ir.Model:
    model = ir.from_proto(proto)
    if path is not None:
        ir.external_data.set_base_dir(model.graph, str(path.parent.resolve()))
    return model


def _how_to_export(source: object) -> str:
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if any(base.__module__.startswith("torch.") for base in type(source).__mro__):
        return (
            f"model: got a {kind}; wanted an ONNX model. Export it first: "
            f"torch.onnx.export(module, example_inputs, dynamo=True).model"
        )
    return f"model: got a {kind}; wanted a path, bytes, an onnx.ModelProto or an onnx_ir.Model."
