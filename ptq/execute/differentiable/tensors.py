"""Arrays to tensors and back, and the element types that torch computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from ptq.errors import UnsupportedModelError

TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
}
"""The types that torch has arithmetic for; not the wide unsigned, 8-bit float and packed ones."""


def torch_type(code: int) -> torch.dtype:
    """The torch type of an ONNX element type.

    Raises:
        UnsupportedModelError: torch has no arithmetic for it.
    """
    kind = ir.DataType(code)
    if kind not in TYPES:
        raise UnsupportedModelError(
            f"element type {kind.name}; the differentiable executor takes "
            f"{', '.join(known.name for known in TYPES)}"
        )
    return TYPES[kind]


def to_tensor(array: npt.NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """A copy of an array as a tensor of the same element type and shape.

    Raises:
        UnsupportedModelError: torch has no arithmetic for the element type.
    """
    if array.dtype == object or array.dtype.kind in "USc":
        raise UnsupportedModelError(
            f"element type {array.dtype}; the differentiable executor takes numbers that ONNX and "
            "torch both have"
        )
    kind = torch_type(ir.DataType.from_numpy(array.dtype))
    array = np.array(array, order="C")
    if kind == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def to_array(x: Tensor) -> npt.NDArray[Any]:
    """A tensor's values as an array; bfloat16 becomes ml_dtypes.bfloat16."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    return np.asarray(x.numpy())
