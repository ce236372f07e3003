"""How many pixels and vectors of channels a processor's registers hold best."""

from __future__ import annotations

from ptq.kernels.packed_convolution import Tile

TILES = {
    "avx2": ((Tile(4, 2, 4), 1.0), (Tile(3, 3, 4), 1.04), (Tile(6, 1, 4), 1.1)),
    "avxvnni": ((Tile(4, 2, 2), 1.0), (Tile(6, 1, 2), 1.1)),
    "avx512vnni": ((Tile(6, 4, 2), 1.0), (Tile(8, 2, 2), 1.1), (Tile(12, 1, 2), 1.2)),
    "dotprod": ((Tile(6, 4, 1), 1.0), (Tile(8, 2, 1), 1.1), (Tile(12, 1, 1), 1.2)),
}
"""With the time of a vector of channels, relative; only AVX2's were measured."""
FEW_SUMS = {"avx2": 8, "avxvnni": 8, "avx512vnni": 16, "dotprod": 16}
"""Vectors of sums that leave registers for the tables and codes of packed weights. So many pixels
are one tile where weights are large, which are read once, straight from memory."""
MOST_VECTORS = 4
GROUP = 4
"""Quads added at a time in such a tile."""


def vector_tile(isa: str, vectors: int, rows: int, pixels: int, *, large: bool) -> Tile:
    """The tile that computes least for nothing, as few channels do not fill its vectors.

    vectors: of all channels. rows: of images, which tiles do not cross. pixels: of all of them.
    large: weights come from memory; those in a cache are read more than once in less time.
    """
    if pixels == 1 or (large and rows == 1 and pixels <= FEW_SUMS[isa]):
        return Tile(pixels, min(vectors, MOST_VECTORS, FEW_SUMS[isa] // pixels), GROUP)

    def cost(choice: tuple[Tile, float]) -> float:
        tile, each = choice
        return each * tile.vectors * -(-vectors // tile.vectors)

    return min(TILES[isa], key=cost)[0]
