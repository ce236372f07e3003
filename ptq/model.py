"""Load a float model from whatever the caller has, checked before anything else reads it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_ir as ir

from ptq import safety
from ptq.errors import InvalidModelError, UnsupportedModelError
from ptq.from_torch import SUFFIXES, from_torch, is_torch

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_SHARED_LIBRARY = b"\x7fELF"

Source: TypeAlias = (
    "str | Path | bytes | onnx.ModelProto | ir.Model | torch.nn.Module | ExportedProgram"
)


def load(source: Source, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> ir.Model:
    """Read a float ONNX model, or export a torch network to one.

    Weights beside the file stay on disk, memory-mapped. example_inputs, dynamic_shapes: of a torch
    module, see `ptq.from_torch`.

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
    if is_torch(source):
        return from_torch(source, example_inputs, dynamic_shapes)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    raise UnsupportedModelError(
        f"model: got a {kind}; wanted a path, bytes, an onnx.ModelProto, an onnx_ir.Model, a torch "
        "module or an ExportedProgram."
    )


def content_of(model: ir.Model) -> Iterator[bytes]:
    """What decides the model's results, for a hash; weights in files of their own included."""
    yield ir.to_proto(model).SerializeToString(deterministic=True)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value.tobytes()


def _from_path(path: Path) -> ir.Model:
    if not path.exists():
        raise InvalidModelError(f"{path}: no such file. Give the path of an .onnx file.")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InvalidModelError(f"{path}: is {kind}. Give the path of an .onnx file.")
    if path.suffix in SUFFIXES:
        raise UnsupportedModelError(
            f"{path}: a torch.export archive; here wanted an .onnx file. `ptq quantize {path.name} "
            f"--trust` reads it, and writes the float ONNX model too."
        )
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise InvalidModelError(f"{path}: the file is empty. Export or download it again.")
    if size_bytes >= _PROTOBUF_LIMIT_BYTES:
        raise InvalidModelError(
            f"{path}: {size_bytes} bytes; a protobuf message has less than 2 GiB. "
            f"Save the model with its weights as external data."
        )
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            proto = _parse(view, str(path))
    except OSError as error:
        raise InvalidModelError(
            f"{path}: cannot be read ({error.strerror}). Check its permissions."
        ) from error
    return _from_proto(proto, path)


def _parse(data: memoryview, where: str) -> onnx.ModelProto:
    if data[: len(_SHARED_LIBRARY)] == _SHARED_LIBRARY:
        raise InvalidModelError(
            f"{where}: a compiled library, not an ONNX model. inspect, verify, eval, bench, "
            "compare and regress take modules; else give the ONNX file that it was compiled from."
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class depends on the backend
        raise InvalidModelError(
            f"{where}: not an ONNX model, or one cut short ({len(data)} bytes that do not parse, "
            f"or subgraphs nested too deep). Export or download it again."
        ) from error
    if not proto.HasField("graph"):
        raise InvalidModelError(
            f"{where}: not an ONNX model: it has no graph. Give the path of an .onnx file."
        )
    return proto


def _from_proto(proto: onnx.ModelProto, path: Path | None) -> ir.Model:
    base = safety.check(proto, path.parent if path is not None else None)
    try:
        model = ir.from_proto(proto)
    except NotImplementedError as error:
        raise UnsupportedModelError(f"model: {error} Export it with tensors only.") from error
    except Exception as error:
        raise InvalidModelError(
            f"model: breaks ONNX's rules ({_root_cause(error)}). Export it again."
        ) from error
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        if base is not None:
            ir.external_data.set_base_dir(graph, str(base))
        _sort(graph)
    _free_unknown_dims(model)
    return model


def _free_unknown_dims(model: ir.Model) -> None:
    """Name the dimensions that a model declares as -1, or at its boundary as 0.

    Paddle's exporter writes unknown sizes so, and onnxruntime takes any size for them.
    """
    boundary = [*model.graph.inputs, *model.graph.outputs]
    inside = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value, highest in (*((v, 0) for v in boundary), *((v, -1) for v in inside)):
        sizes = list(value.shape or ())
        unknown = [isinstance(size, int) and size <= highest for size in sizes]
        if any(unknown):
            value.shape = ir.Shape(
                f"{value.name}_{axis}" if unknown[axis] else size for axis, size in enumerate(sizes)
            )


def _sort(graph: ir.Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise InvalidModelError(
            f"graph {graph.name or ''}: its nodes form a cycle, so none of them can be first. "
            f"Export the model again."
        ) from error


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:300]
