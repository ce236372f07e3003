"""Which products go to tensor cores, and in what tiles; none of it was measured on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.kernels.packed_convolution import PackedConvolution
from ptq.kernels.tensor_convolution import (
    CHANNELS,
    PIXELS,
    STEP,
    TensorConvolution,
    WarpTile,
    pack_fragments,
    pack_palette,
)
from ptq.targets.tvm.lowering import Lowering, Operand

TILES = (WarpTile(2, 4), WarpTile(1, 4), WarpTile(1, 2), WarpTile(1, 1))
"""Most work on each value that is loaded first."""
ENOUGH_WARPS = 1 << 10
"""Some ten a multiprocessor of an A100, which has 108."""


def tensor_kernel(features: frozenset[str], kernel: PackedConvolution) -> TensorConvolution | None:
    """The same convolution on tensor cores, or None where dp4a wastes less.

    Half of the codes of a step, or of the channels or pixels of a product, would be filled up.
    """
    pixels = kernel.samples * kernel.out_rows * kernel.out_width
    small = kernel.run < STEP // 2 or kernel.out < CHANNELS // 2 or pixels < PIXELS // 2
    if "mma" not in features or kernel.groups != 1 or small:
        return None

    def made(tile: WarpTile) -> TensorConvolution:
        return TensorConvolution(
            tile, kernel.runs, kernel.run, kernel.row_bytes, kernel.pixel_bytes, kernel.out_rows,
            kernel.out_width, kernel.out, kernel.rounding, kernel.samples, kernel.sample_bytes,
        )  # fmt: skip

    def warps(tile: WarpTile) -> int:
        down, across = made(tile).tiles
        return down * across

    return made(next((tile for tile in TILES if warps(tile) >= ENOUGH_WARPS), TILES[-1]))


def with_weights(
    state: Lowering, kernel: TensorConvolution, rows: npt.NDArray[Any]
) -> tuple[TensorConvolution, list[Operand]]:
    """The kernel and its weights [out, runs, run bytes]: int8, or packed where that is wanted.

    Products of many pixels read every weight often, so that only size is gained: `auto` is int8.
    """
    fragments = pack_fragments(rows, kernel)
    found = pack_palette(fragments) if state.weights == "packed" else None
    if found is None or found.codes.nbytes + found.tables.nbytes >= fragments.nbytes:
        return kernel, [state.constant(fragments)]
    parts = [state.constant(np.ascontiguousarray(part)) for part in (found.codes, found.tables)]
    return replace(kernel, bits=found.bits), list[Operand](parts)
