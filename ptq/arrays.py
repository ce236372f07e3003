"""Arrays of any library as an address and a shape, by Python's standard library alone.

Two protocols cover them: buffers (PEP 3118: numpy, array, memoryview) and DLPack (torch, JAX).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

KINDS = {"f": "float", "d": "float"} | dict.fromkeys("bhilq", "int")
"""What the letters of the formats of `struct` mean."""
DLPACK_KINDS = {0: "int", 2: "float"}
DLPACK_CPU = 1


@dataclass(frozen=True)
class Dense:
    """An array in row-major order, in this process's memory. owner: keeps it there."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: object


class _Tensor(ctypes.Structure):
    """DLTensor, the beginning of what a capsule holds: github.com/dmlc/dlpack, dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("axes", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def dense(x: Any) -> Dense | None:
    """`x` where it lies, a copy if it is read-only; None if it is not a dense array of numbers."""
    return _of_buffer(x) or _of_dlpack(x)


def address_of(writable: memoryview[Any]) -> int:
    """Where its first byte is."""
    return ctypes.addressof((ctypes.c_char * writable.nbytes).from_buffer(writable))


def room(size: int, alignment: int) -> memoryview:
    """`size` bytes of zeros at a multiple of `alignment`."""
    whole = memoryview(bytearray(size + alignment))
    start = -address_of(whole) % alignment
    return whole[start : start + size]


def floats(shape: Sequence[int]) -> memoryview[Any]:
    """Zeros, float32; no extent may be zero."""
    return memoryview(bytearray(4 * prod(shape))).cast("f", list(shape))


def integers(count: int) -> memoryview:
    """Zeros, int64."""
    return memoryview(bytearray(8 * count)).cast("q")


def as_numpy(view: memoryview[Any]) -> Any:
    """The same memory as a numpy array where numpy is installed, else as it is."""
    try:
        import numpy as np
    except ImportError:
        return view
    return np.asarray(view)


def _of_buffer(x: Any) -> Dense | None:
    try:
        view = memoryview(x)
    except (TypeError, ValueError, BufferError):
        return None
    kind = KINDS.get(view.format.removeprefix("<").removeprefix("="))
    if kind is None or not view.c_contiguous:
        return None
    kept: Any = view
    if view.readonly:
        kept = memoryview(bytearray(view))
    return Dense(address_of(kept), view.shape or (), f"{kind}{8 * view.itemsize}", kept)


def _of_dlpack(x: Any) -> Dense | None:
    """The capsule is not consumed: it frees what it holds when it goes."""
    if not hasattr(x, "__dlpack__") or x.__dlpack_device__()[0] != DLPACK_CPU:
        return None
    try:
        capsule = x.__dlpack__()
    except BufferError:  # the other byte order, or a gradient to keep
        return None
    get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    tensor = _Tensor.from_address(get_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.axes])
    strides = tensor.strides[: tensor.axes] if tensor.strides else None
    kind = DLPACK_KINDS.get(tensor.kind)
    if kind is None or tensor.lanes != 1 or not (strides is None or _row_major(shape, strides)):
        return None
    address = (tensor.data or 0) + tensor.byte_offset
    return Dense(address, shape, f"{kind}{tensor.bits}", capsule)


def _row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """strides: in elements; those of axes of one element do not matter."""
    wanted = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(n == 1 or s == w for n, s, w in zip(shape, strides, wanted, strict=True))
