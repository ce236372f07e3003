"""Data-free rounding by flipping (SQuant, Guo et al., arXiv 2202.07471).

Without samples a layer's Hessian is modelled as three nested terms, one for elements, one for the
sum of each kernel and one for the sum of each output channel:

    sum_k d_k^2 + sum_kernels (sum_k d_k)^2 + (sum d)^2        d = w^ - w, in units of the scale

They are reduced in this order: every element takes its nearest level; in each kernel the elements
that cost least move one level until the kernel's sum is as near to zero as it can be; then at most
one element a kernel moves for the sum of the channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.grid import Codes, Floats, Grid, Integers

Array = npt.NDArray[np.float64]


def squant(w: Floats, grid: Grid, scale: Floats, zero_point: Integers) -> Codes:
    """Codes whose errors nearly cancel in every kernel and every channel: [rows, in, k] uint8.

    w: [rows, in, k], k elements a kernel (1 for matrix products); scale, zero_point: [rows]. Every
    code is the nearest one or one of its neighbours.
    """
    codes = grid.quantize(w, scale, zero_point).astype(np.int64)
    scaled = np.asarray(w, np.float64) / np.asarray(scale, np.float64)[:, None, None]
    tables = grid.tables(zero_point).astype(np.float64)
    error = look_up(tables, codes) - scaled
    moved = flips_of_kernels(error, codes, tables)
    codes += moved
    error = look_up(tables, codes) - scaled
    codes += flips_of_channels(error, codes, tables, moved)
    return codes.astype(np.uint8)


def flips_of_kernels(error: Array, codes: Integers, tables: Array) -> Integers:
    """Moves of -1, 0 or 1 that bring each kernel's error sum to zero: [rows, in, k] int64."""
    total = error.sum(axis=2, keepdims=True)
    move = -np.sign(total).astype(np.int64)
    step = np.abs(look_up(tables, codes + move) - look_up(tables, codes))
    movable = (step > 0) & (error * total > 0)
    return np.asarray(move * selected(np.abs(error), step, movable, np.abs(total)))


def flips_of_channels(error: Array, codes: Integers, tables: Array, moved: Integers) -> Integers:
    """Moves of at most one element a kernel that bring each channel's error sum to zero.

    moved: what kernels moved; no element moves twice the same way.
    """
    kernels = error.sum(axis=2)
    total = kernels.sum(axis=1, keepdims=True)
    move = -np.sign(total).astype(np.int64)[:, :, None]
    step = np.abs(look_up(tables, codes + move) - look_up(tables, codes))
    step = np.where(np.abs(moved + move) <= 1, step, 0.0)
    cost = np.where(step > 0, step * (step + 2.0 * move * error), np.inf)
    element = cost.argmin(axis=2)[:, :, None]
    own_step = np.take_along_axis(step, element, axis=2)[:, :, 0]
    movable = (own_step > 0) & (kernels * total > 0)
    chosen = selected(np.abs(kernels), own_step, movable, np.abs(total))
    flips = np.zeros(codes.shape, np.int64)
    np.put_along_axis(flips, element, chosen[:, :, None] * move, axis=2)
    return flips


def look_up(tables: Array, codes: Integers) -> Array:
    """Levels of codes [rows, in, k]; codes beyond the grid count as its ends."""
    inside = np.clip(codes, 0, tables.shape[1] - 1).reshape(len(codes), -1)
    return np.take_along_axis(tables, inside, axis=1).reshape(codes.shape)


def selected(error: Array, step: Array, movable: npt.NDArray[np.bool_], total: Array) -> Integers:
    """Which elements of the last axis to move so that `total` comes nearest to zero: 0 or 1.

    error, step: [..., n], what each contributes to the total and by how much moving it lowers
    that, >= 0; total: [..., 1]. Those that raise the sum of squares least are moved first.
    """
    cost = np.where(movable, step * (step - 2.0 * error), np.inf)
    order = cost.argsort(axis=-1, kind="stable")
    sorted_steps = np.take_along_axis(np.where(movable, step, np.inf), order, axis=-1)
    left = np.abs(total - np.cumsum(sorted_steps, axis=-1))
    left = np.concatenate([total, left], axis=-1)
    count = left.argmin(axis=-1, keepdims=True)
    flags = np.arange(order.shape[-1]) < count
    result = np.empty(order.shape, np.int64)
    np.put_along_axis(result, order, flags.astype(np.int64), axis=-1)
    return result
