"""What a tensor claims about itself, checked against what is there; its numbers are not read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx
from onnx import TensorProto

from ptq.errors import InvalidModelError, UnsafeModelError, UnsupportedModelError
from ptq.external_data import ExternalFiles

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.FLOAT8E8M0: 8,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}
"""Bits of one element on disk; STRING has no size of its own."""

_TYPED_FIELDS: dict[str, Callable[[TensorProto], int]] = {
    "float_data": lambda t: len(t.float_data),
    "int32_data": lambda t: len(t.int32_data),
    "string_data": lambda t: len(t.string_data),
    "int64_data": lambda t: len(t.int64_data),
    "double_data": lambda t: len(t.double_data),
    "uint64_data": lambda t: len(t.uint64_data),
}

_FIELD_OF: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
"""The typed field that holds a dtype; every other dtype is in int32_data."""


def check_tensor(tensor: TensorProto, where: str, files: ExternalFiles, max_elements: int) -> None:
    """Refuse a tensor whose dtype, dims, size or place does not hold.

    Raises:
        InvalidModelError, UnsafeModelError, UnsupportedModelError: naming the tensor.
    """
    name = f"{tensor.name or 'a constant'} ({where})"
    if tensor.data_type not in BITS and tensor.data_type != TensorProto.STRING:
        raise InvalidModelError(
            f"{name}: data_type {tensor.data_type} is not a tensor type of ONNX. "
            f"Export the model again, or upgrade onnx."
        )
    if tensor.HasField("segment"):
        raise UnsupportedModelError(f"{name}: is stored in segments. Export the model again.")
    elements = check_dims(tensor.dims, name, max_elements)
    if tensor.data_location == TensorProto.EXTERNAL:
        if tensor.data_type == TensorProto.STRING:
            raise InvalidModelError(f"{name}: strings cannot be external data.")
        if any(_stored(tensor).values()):
            raise InvalidModelError(f"{name}: has data both inside and outside the file.")
        files.check(tensor, _size_bytes(tensor.data_type, elements), name)
        return
    _check_inline(tensor, elements, name)


def check_dims(dims: Sequence[int], name: str, max_elements: int) -> int:
    """The number of elements; Python integers do not wrap, so the product is exact."""
    if any(size < 0 for size in dims):
        raise InvalidModelError(
            f"{name}: shape {list(dims)[:8]} has a negative dimension; "
            f"wanted 0 or more. Export the model again."
        )
    # The product of the sizes that are not 0: a 0 must not hide an absurd one.
    if len(dims) > 64 or math.prod(size or 1 for size in dims) > max_elements:
        raise UnsafeModelError(
            f"{name}: shape {list(dims)[:8]} has more than {max_elements} elements. "
            f"Refused, because no memory holds it."
        )
    return math.prod(dims)


def check_type(proto: onnx.TypeProto, where: str, max_elements: int, max_depth: int) -> None:
    """Refuse a declared type with impossible dims or with containers nested too deep."""
    for _ in range(max_depth):
        kind = proto.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            shape = getattr(proto, kind).shape
            # -1 is how some exporters write an unknown dimension; onnxruntime reads it so.
            sizes = [0 if d.dim_value == -1 else d.dim_value for d in shape.dim]
            check_dims(sizes, where, max_elements)
            return
        if kind not in ("sequence_type", "optional_type", "map_type"):
            return
        inner = getattr(proto, kind)
        proto = inner.value_type if kind == "map_type" else inner.elem_type
    raise UnsafeModelError(f"{where}: types nested more than {max_depth} deep.")


def _check_inline(tensor: TensorProto, elements: int, name: str) -> None:
    stored = {field: count for field, count in _stored(tensor).items() if count}
    if len(stored) > 1:
        raise InvalidModelError(
            f"{name}: has data in {' and '.join(stored)}; wanted one of them. "
            f"Export the model again."
        )
    wanted_field = _FIELD_OF.get(tensor.data_type, "int32_data")
    field, count = next(iter(stored.items()), (wanted_field, 0))
    if field == "raw_data" and tensor.data_type != TensorProto.STRING:
        wanted = _size_bytes(tensor.data_type, elements)
    elif field == wanted_field:
        wanted = _typed_count(tensor.data_type, elements)
    else:
        raise InvalidModelError(f"{name}: has its data in {field}; wanted {wanted_field}.")
    if count != wanted:
        raise InvalidModelError(
            f"{name}: shape {list(tensor.dims)} needs {wanted} "
            f"{'bytes' if field == 'raw_data' else 'entries'} of {field}, got {count}. "
            f"The file is damaged or forged; export or download it again."
        )


def _stored(tensor: TensorProto) -> dict[str, int]:
    counts = {field: count(tensor) for field, count in _TYPED_FIELDS.items()}
    return {"raw_data": len(tensor.raw_data), **counts}


def _size_bytes(data_type: int, elements: int) -> int:
    return -(-elements * BITS[data_type] // 8)


def _typed_count(data_type: int, elements: int) -> int:
    """Entries of the typed field: complex numbers take two, packed codes share one byte."""
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements
    if BITS.get(data_type, 8) < 8:
        return _size_bytes(data_type, elements)
    return elements
