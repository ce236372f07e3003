"""The order of packed weights, as kernels walk them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ptq.kernels.dot import QUAD, Isa
from ptq.kernels.kernel import Array

if TYPE_CHECKING:
    from ptq.kernels.packed_convolution import PackedConvolution


def pack(rows: Array, kernel: PackedConvolution) -> Array:
    """int8 [groups * out, runs, run bytes] -> [blocks, runs, quads, vectors, lanes, 4].

    Zeros where there is nothing; `in_order` makes the kernel's order of it.
    """
    lanes, groups = kernel.how.lanes, kernel.groups
    runs, size = len(kernel.runs), kernel.quads * QUAD
    full = np.zeros((groups, kernel.group_blocks * kernel.block, runs, size), np.int8)
    full[:, : kernel.out, :, : rows.shape[2]] = rows.reshape(groups, kernel.out, runs, -1)
    split = full.reshape(kernel.blocks, kernel.tile.vectors, lanes, runs, kernel.quads, QUAD)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 1, 2, 5))


def whole_pairs(runs: list[int], rows: Array) -> tuple[list[int], Array]:
    """Runs, and their weights [out, runs, run bytes], so that no pair of weights is broken.

    Weights are safe in the pairs of the flattened window (ptq.integer.pairs). If a run is odd,
    every other one begins in the middle of a pair, and so starts a byte earlier here, with a
    weight of zero.
    """
    if rows.shape[2] % 2 == 0 or len(runs) == 1:
        return runs, rows
    padded = np.pad(rows, ((0, 0), (0, 0), (0, 1)))
    padded[:, 1::2] = np.roll(padded[:, 1::2], 1, axis=2)
    return [start - number % 2 for number, start in enumerate(runs)], padded


def in_order(packed: Array, isa: Isa) -> Array:
    """Weights [blocks, runs, quads, vectors, ...], or codes [blocks, units, vectors, ...], flat."""
    steps = 2 if packed.ndim == 6 else 1
    order = [*range(1, 1 + steps), 0, *range(1 + steps, packed.ndim)]
    return np.ascontiguousarray(packed.transpose(order) if isa.by_thread else packed).reshape(-1)


def unpack(weight: Array, kernel: PackedConvolution) -> Array:
    """The kernel's order -> [blocks * block, runs, bytes], int8."""
    lanes, runs = kernel.how.lanes, len(kernel.runs)
    sizes = (kernel.blocks, runs, kernel.quads, kernel.tile.vectors, lanes, QUAD)
    if kernel.how.by_thread:
        order = (1, 2, 0, 3, 4, 5)
        weight = weight.reshape([sizes[axis] for axis in order]).transpose(2, 0, 1, 3, 4, 5)
    split = weight.reshape(sizes).transpose(0, 3, 4, 1, 2, 5)
    rows = split.reshape(kernel.blocks * kernel.block, runs, kernel.quads * QUAD)
    return np.ascontiguousarray(rows)
