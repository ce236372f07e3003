"""Find NaN and Inf in the weights, in constant memory, whatever the size of the model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.errors import InvalidModelError

_CHUNK_BYTES = 1 << 20

WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"}
)
"""Operators whose constants are weights; elsewhere an Inf can be a mask or an open bound."""

_PASSED_ON = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"})

Bits = npt.NDArray[np.bool_]


def _native(dtype: type[np.floating]) -> Callable[[memoryview], tuple[Bits, Bits]]:
    def split(chunk: memoryview) -> tuple[Bits, Bits]:
        numbers = np.frombuffer(chunk, dtype)
        finite = np.isfinite(numbers)
        return finite, np.isnan(numbers) if not finite.all() else ~finite

    return split


def _brain(chunk: memoryview) -> tuple[Bits, Bits]:
    bits = np.frombuffer(chunk, np.uint16)
    finite = (bits & 0x7F80) != 0x7F80
    return finite, ~finite & ((bits & 0x7F) != 0)


_SPLIT = {
    ir.DataType.FLOAT: _native(np.float32),
    ir.DataType.DOUBLE: _native(np.float64),
    ir.DataType.FLOAT16: _native(np.float16),
    ir.DataType.BFLOAT16: _brain,
}
"""dtype -> (which numbers are finite, which are NaN) of a chunk of bytes."""


@dataclass(frozen=True)
class _NotFinite:
    """The flat index of the first NaN and of the first Inf; None when there is none."""

    nan: int | None
    inf: int | None


def check_finite(model: ir.Model) -> None:
    """Refuse NaN in any float constant, and Inf in one that is a weight.

    Raises:
        InvalidModelError: naming the tensor and the first bad place.
    """
    for name, tensor, consumers in _constants(model):
        found = _first_not_finite(tensor)
        if found.nan is not None:
            raise InvalidModelError(_message(name, "NaN", found.nan, tensor))
        if found.inf is not None and consumers & WEIGHTED:
            raise InvalidModelError(_message(name, "Inf", found.inf, tensor))


def _message(name: str, what: str, index: int, tensor: ir.TensorProtocol) -> str:
    shape = tensor.shape.numpy()
    place = [int(i) for i in np.unravel_index(index, shape)] if shape else []
    return (
        f"{name}: {what} at {place} of shape {list(shape)}; wanted finite weights. "
        f"Training diverged or the file is damaged: take an earlier checkpoint."
    )


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol, set[str]]]:
    """Every constant tensor: its name, the tensor, the operators that read it."""
    bodies = [*model.graphs(), *(function.graph for function in model.functions.values())]
    for graph in bodies:
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value, _consumers(value)
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield node.name or node.op_type, attribute.as_tensor(), _readers(node)


def _readers(node: ir.Node) -> set[str]:
    return set().union(*(_consumers(output) for output in node.outputs))


def _consumers(value: ir.Value) -> set[str]:
    """The operators that read `value`, seen through those that only pass it on."""
    found: set[str] = set()
    pending, seen = [value], {value}
    while pending:
        for node, _ in pending.pop().uses():
            found.add(node.op_type)
            if node.op_type in _PASSED_ON and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return found


def _first_not_finite(tensor: ir.TensorProtocol) -> _NotFinite:
    split = _SPLIT.get(tensor.dtype)
    if split is None:
        return _NotFinite(None, None)
    start, first_nan, first_inf = 0, None, None
    for chunk in _chunks(tensor):
        finite, nan = split(chunk)
        if not finite.all():
            if nan.any():
                first_nan = start + int(nan.argmax())
                break
            if first_inf is None:
                first_inf = start + int((~finite).argmax())
        start += finite.size
    return _NotFinite(first_nan, first_inf)


def _chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """The tensor's bytes, little-endian; a file is read, not mapped, so that no page stays.

    A chunk is valid until the next one is asked for: they share one buffer.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        data = memoryview(tensor.tobytes())
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
        return
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, tensor.nbytes)))
    with Path(tensor.path).open("rb", buffering=0) as file:
        file.seek(tensor.offset or 0)
        for start in range(0, tensor.nbytes, _CHUNK_BYTES):
            chunk = buffer[: tensor.nbytes - start]
            _fill(chunk, file, f"{tensor.name}: {tensor.path}")
            yield chunk


def _fill(chunk: memoryview, file: io.FileIO, where: str) -> None:
    """Read exactly one chunk; the system may give it in pieces."""
    filled = 0
    while filled < len(chunk):
        count = file.readinto(chunk[filled:])
        if not count:
            raise InvalidModelError(
                f"{where} ended {len(chunk) - filled} bytes early. It changed while it was read; "
                f"try again."
            )
        filled += count
