"""What one thread of a GPU computes; none of it was measured on one."""

from __future__ import annotations

from ptq.kernels.dot import QUAD
from ptq.kernels.packed_convolution import Tile
from ptq.kernels.palette import UNIT

SHAPES = ((4, 4), (4, 2), (2, 2), (2, 1))
"""(pixels, channels), most work on each value that is loaded first."""
ENOUGH_THREADS = 1 << 15
"""Some 300 a multiprocessor of an A100, which has 108: fewer leave its schedulers idle."""


def gpu_tile(channels: int, groups: int, pixels: int, run: int, *, in_units: bool) -> Tile:
    """The largest tile that still gives every multiprocessor work; unrolled as `run` allows.

    channels: of the output, in each of so many groups. run: bytes of the window's runs.
    in_units: weights are codes of a palette, which are decoded by whole units.
    """
    whole = (quads for quads in (4, 2, 1) if run % (quads * QUAD) == 0)
    group = UNIT if in_units else next(whole, 1)
    if pixels == 1:
        return Tile(1, 1, group)

    def threads(shape: tuple[int, int]) -> int:
        return groups * -(-pixels // shape[0]) * -(-channels // shape[1])

    fitting = [s for s in SHAPES if s[1] <= channels or s[1] == 1]
    best = next((s for s in fitting if threads(s) >= ENOUGH_THREADS), fitting[-1])
    return Tile(*best, group)
