"""Bringing a sample to exactly what a model input takes, or saying why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq.calib_data.objects import as_array
from ptq.calib_data.pixels import is_pixels
from ptq.calib_data.spec import Array, Batch, InputSpec
from ptq.errors import CalibrationError


def with_batch(value: Any, spec: InputSpec) -> Array:
    """`value` as an array that has the batch dimension, which a single sample may lack."""
    x = as_array(value)
    lacks = x.ndim == spec.rank - 1 and spec.shape[0] in (None, 1)
    if lacks and is_pixels(x, spec):
        return x[None] if x.shape[2] in (1, 3, 4) or x.shape[0] in (1, 3, 4) else x
    return x[None] if lacks else x


def conform(
    batch: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, rows: Array
) -> Batch:
    """Check and convert a batch.

    rows: index in the source of each row, for messages.

    Raises:
        CalibrationError: wrong shape, NaN or infinity, or numbers that the type cannot hold.
    """
    return {spec.name: _one(batch[spec.name], spec, where, rows) for spec in inputs}


def _one(x: Array, spec: InputSpec, where: str, rows: Array) -> Array:
    _check_shape(x, spec, f"{where} {int(rows[0])}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x.reshape(len(x) if x.ndim else 1, -1)).all(axis=1))[0]
        raise CalibrationError(
            f"{where} {int(rows[min(bad, len(rows) - 1)])}: input {spec.name}: got NaN or infinity,"
            " wanted finite numbers; remove or repair the sample"
        )
    return x if x.dtype == spec.dtype else _convert(x, spec, f"{where} {int(rows[0])}")


def _check_shape(x: Array, spec: InputSpec, where: str) -> None:
    fits = x.ndim == spec.rank and all(
        want is None or have == want
        for axis, (have, want) in enumerate(zip(x.shape, spec.shape, strict=True))
        if axis > 0  # the batch is cut to size elsewhere
    )
    if not fits:
        got = f"{x.dtype}{list(x.shape)}"
        raise CalibrationError(
            f"{where}: input {spec.name}: got {got}, wanted {spec}{_hint(x, spec)}"
        )


def _hint(x: Array, spec: InputSpec) -> str:
    if is_pixels(x, spec) and spec.dtype != np.uint8:
        return (
            "; these look like raw pixels: say how the network wants them, for example"
            " preprocess 'imagenet' or 'mean=127,std=128'"
        )
    if x.ndim == spec.rank == 4:
        for order, text in (((0, 3, 1, 2), "NHWC"), ((0, 2, 3, 1), "NCHW")):
            turned = [x.shape[axis] for axis in order]
            if all(w is None or g == w for g, w in zip(turned[1:], spec.shape[1:], strict=True)):
                return f"; the data looks like {text}: transpose it to {order}"
    return ""


def _convert(x: Array, spec: InputSpec, where: str) -> Array:
    """Any number to float; to integer only what stays the same."""
    if spec.dtype.kind not in "biu":
        with np.errstate(over="ignore"):
            y = x.astype(spec.dtype)
        lost = bool(x.dtype.kind == "f") and not np.isfinite(y.astype(np.float64)).all()
    else:
        y = _to_integer(x, spec.dtype)
        lost = not np.array_equal(y, x)
    if lost:
        raise CalibrationError(
            f"{where}: input {spec.name}: got {x.dtype} with values from {x.min()} to {x.max()},"
            f" which {spec.dtype} cannot hold; wanted {spec}"
        )
    return y


def _to_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        return x.astype(bool)
    info = np.iinfo(dtype)
    with np.errstate(invalid="ignore"):
        return np.clip(x, info.min, info.max).astype(dtype)
