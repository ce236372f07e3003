"""[..., k] as a matrix and back: for operators that take two dimensions only."""

from __future__ import annotations

import onnx_ir as ir

from ptq.targets.build import Builder


def rows_of(b: Builder, value: ir.Value, k: int) -> ir.Value:
    """[..., k] -> [rows, k]."""
    return b.node("Reshape", [value, b.constant([-1, k], "int64", "shape")])


def like_rows(b: Builder, matrix: ir.Value, like: ir.Value, n: int) -> ir.Value:
    """[rows, n] -> [..., n], where `like` is [..., k]."""
    dims = None if like.shape is None else [d if isinstance(d, int) else -1 for d in like.shape]
    if dims is not None and dims[:-1].count(-1) <= 1:
        shape = b.constant([*dims[:-1], n], "int64", "shape")
    else:
        front = b.node("Shape", [like], {"start": 0, "end": -1})
        shape = b.node("Concat", [front, b.constant([n], "int64", "columns")], {"axis": 0})
    return b.node("Reshape", [matrix, shape])
