"""Which products go to tensor cores, and in what tiles; none of it was measured on a GPU."""

from __future__ import annotations

from ptq.kernels.packed_convolution import PackedConvolution
from ptq.kernels.tensor_convolution import CHANNELS, PIXELS, STEP, TensorConvolution, WarpTile

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
