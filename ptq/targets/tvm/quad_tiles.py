"""Depthwise convolutions by four rows at a time: which ones, and their tiles.

A window of one row is turned: four columns at a time, then.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy.typing as npt

from ptq.integer.program import Convolve
from ptq.kernels.depthwise_quads import DepthwiseQuads
from ptq.kernels.dot import QUAD
from ptq.kernels.kernel import strides_of
from ptq.kernels.quad_vectors import WIDTHS
from ptq.kernels.quad_window import Tile, Window
from ptq.kernels.requantize import Rounding
from ptq.kernels.saturation import VECTORS
from ptq.kernels.view import View
from ptq.targets.tvm.images import Image

Array = npt.NDArray[Any]
REGISTERS = {"avx512vnni": 32, "avxvnni": 16, "dotprod": 32}
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12)
PIXELS = (1, 2, 3, 4, 5, 6, 7, 8)
STRIP_COLUMNS = 28
STRIP_BYTES = 16 << 10
"""A third of a first-level cache: rows of the image and of the output are in it, too."""
MOST_STRIP_BYTES = 1 << 18
"""What a thread's stack surely has room for."""
LOAD, INTERLEAVE, FINISH, PIXEL = 0.5, 1.0, 3.0, 0.012
"""What a vector of weights, one of quads, and an output's requantisation take, in dot products, and
what a pixel more in a tile adds to everything.

They make the best choices among the tiles of the sweep in docs/decisions.md."""


def takes_quads(isa: str, step: Convolve) -> bool:
    """True if the processor can, there are enough channels, and a window fits in a strip."""
    if isa not in WIDTHS or len(step.weight) < WIDTHS[isa][-1].channels:
        return False
    return _strip_bytes(isa, _window(step), 1, 1) <= MOST_STRIP_BYTES


def quad_kernel(
    isa: str, step: Convolve, image: Image, rounding: Rounding, places: View | None
) -> DepthwiseQuads:
    """The kernel for a padded image. places: of the output's pixels; None: one after another."""
    channels, _, *taps = step.weight.shape
    shape = image.samples, image.out_rows, image.out_width
    y = places or View(shape, tuple(n * channels for n in strides_of(shape)))
    reach = [
        (count - 1) * stride + (tap - 1) * dilation + 1
        for count, stride, tap, dilation in zip(
            shape[1:], step.strides, taps, step.dilations, strict=True
        )
    ]
    strides = image.sample_bytes, image.row_bytes, image.pixel_bytes
    x = View((image.samples, *reach), strides, image.corner)
    if _is_turned(step):
        x, y = (View(_swapped(v.shape), _swapped(v.strides), v.offset) for v in (x, y))
    window, (_, height, width) = _window(step), y.shape
    tile = quad_tile(isa, window, height, width)
    return DepthwiseQuads(isa, tile, window, channels, rounding, x, y)


def quad_weights(kernel: DepthwiseQuads, step: Convolve) -> Array:
    """The step's weights as the kernel reads them."""
    weight = step.weight[:, 0]
    return kernel.arranged(weight.transpose(0, 2, 1) if _is_turned(step) else weight)


def _is_turned(step: Convolve) -> bool:
    return bool(step.weight.shape[2] == 1)


def _swapped(three: tuple[int, ...]) -> tuple[int, int, int]:
    first, second, third = three
    return first, third, second


def _window(step: Convolve) -> Window:
    pairs = step.weight.shape[2:], step.dilations, step.strides
    turn = -1 if _is_turned(step) else 1
    taps, dilations, strides = ((pair[::turn][0], pair[::turn][1]) for pair in pairs)
    return Window(taps, dilations, strides)


def quad_tile(isa: str, window: Window, height: int, width: int) -> Tile:
    """The tile of the lowest cost for so many outputs."""
    tiles = [
        Tile(rows, pixels, _columns(isa, window, rows, pixels, width))
        for rows, pixels in itertools.product(ROWS, PIXELS)
        if rows <= height and pixels <= width
    ]
    fit = [tile for tile in tiles if _fits(isa, window, tile)]
    return min(fit or tiles[:1], key=lambda tile: cost(window, tile, height, width))


def _fits(isa: str, window: Window, tile: Tile) -> bool:
    """Sums, quads of a few neighbouring columns and a vector of weights stay in registers."""
    needed = tile.rows * tile.pixels + tile.pixels + min(window.taps[1] - 1, QUAD) + 1
    strip = _strip_bytes(isa, window, tile.rows, tile.columns)
    return bool(needed <= REGISTERS[isa] and strip <= MOST_STRIP_BYTES)


def cost(window: Window, tile: Tile, height: int, width: int) -> float:
    """All outputs, in dot products of vectors; what overlapping tiles do twice is in it."""
    rows, pixels, columns = tile.rows, tile.pixels, tile.columns
    dots = window.taps[1] * len(window.products(rows)) / rows
    quads = len(window.quads(rows)) * window.width(columns) / (rows * columns)
    in_strip = -(-columns // pixels) * pixels / columns
    each = (dots * (1 + LOAD / pixels) + FINISH) * in_strip + INTERLEAVE * quads
    outputs = (-(-height // rows) * rows) * (-(-width // columns) * columns)
    return each * outputs * (1 + PIXEL * pixels)


def _columns(isa: str, window: Window, rows: int, pixels: int, width: int) -> int:
    """As many as are good for a strip, of equal strips and whole tiles."""
    strips = -(-width // STRIP_COLUMNS)
    while True:
        columns = -(-width // strips)
        if columns <= pixels or _strip_bytes(isa, window, rows, columns) <= STRIP_BYTES:
            return max(columns, pixels)
        strips += 1


def _strip_bytes(isa: str, window: Window, rows: int, columns: int) -> int:
    block = VECTORS * WIDTHS[isa][0].lanes * QUAD
    return window.width(columns) * len(window.quads(rows)) * block
