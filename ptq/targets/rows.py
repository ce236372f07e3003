"""[..., k] as a matrix and back: for operators that take two dimensions only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.targets.build import Builder


def rows_of(b: Builder, value: ir.Value, k: int) -> ir.Value:
    """[..., k] -> [rows, k]."""
    return b.node("Reshape", [value, b.constant([-1, k], "int64", "c")])


def like_rows(b: Builder, matrix: ir.Value, like: ir.Value, n: int) -> ir.Value:
    """[rows, n] -> [..., n], where `like` is [..., k]."""
    front = _static(like.shape[:-1]) if like.shape is not None else None
    if front is not None:
        shape = b.constant([*front, n], "int64", "c")
    else:
        dims = b.node("Shape", [like], {"start": 0, "end": -1})
        shape = b.node("Concat", [dims, b.constant([n], "int64", "c")], {"axis": 0})
    return b.node("Reshape", [matrix, shape])


def beside(
    b: Builder, value: ir.Value, number: npt.ArrayLike, dtype: npt.DTypeLike, hint: str = "c"
) -> ir.Value:
    """A number as an operand beside `value`, with as many axes where those are known.

    onnxruntime walks [..., n, 1] and a scalar element by element: 37 us for 1,536 of them, where
    [..., n, 1] and [1, ..., 1] take 12.
    """
    rank = 0 if value.shape is None else len(value.shape)
    return b.constant(np.reshape(number, [1] * rank), dtype, hint)


def shape_of(b: Builder, value: ir.Value) -> ir.Value:
    """A shape that gives the elements of `value`, however laid out, its dimensions again."""
    dims = None if value.shape is None else _static(value.shape)
    return b.node("Shape", [value]) if dims is None else b.constant(dims, "int64", "c")


def _static(shape: Iterable[int | ir.SymbolicDim]) -> list[int] | None:
    """Dimensions with -1 for the one that is not known; None if there are more or a zero."""
    dims = [d if isinstance(d, int) else -1 for d in shape]
    return None if dims.count(-1) > 1 or 0 in dims else dims
