"""Which rows of an image four at a time meet which taps of a window."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ptq.kernels.dot import QUAD


@dataclass(frozen=True)
class Tile:
    """rows x pixels outputs stay in registers; columns: outputs of a row that share a strip."""

    rows: int
    pixels: int
    columns: int


@dataclass(frozen=True)
class Window:
    """Taps down and across; how far apart they are, and neighbouring windows."""

    taps: tuple[int, int]
    dilations: tuple[int, int]
    strides: tuple[int, int]

    def rows(self, outputs: int) -> tuple[int, ...]:
        """Rows that so many outputs below each other read, from the first one's first."""
        tall, down, stride = self.taps[0], self.dilations[0], self.strides[0]
        return tuple(sorted({r * stride + i * down for r in range(outputs) for i in range(tall)}))

    def quads(self, outputs: int) -> list[tuple[int, ...]]:
        """These rows in fours; the last one is repeated."""
        rows = self.rows(outputs)
        padded = (*rows, *rows[-1:] * (-len(rows) % QUAD))
        return [padded[i : i + QUAD] for i in range(0, len(padded), QUAD)]

    def width(self, outputs: int) -> int:
        """Columns that so many outputs beside each other reach over."""
        return (outputs - 1) * self.strides[1] + (self.taps[1] - 1) * self.dilations[1] + 1

    def products(self, outputs: int) -> dict[tuple[int, int], tuple[int, ...]]:
        """For every quad and output that have a row in common: the quad's taps, -1 for none."""
        tall, down, stride = self.taps[0], self.dilations[0], self.strides[0]
        found = {}
        every = enumerate(self.quads(outputs))
        for (quad, rows), output in itertools.product(every, range(outputs)):
            new = [row if row not in rows[:i] else -1 for i, row in enumerate(rows)]
            places = [divmod(row - output * stride, down) for row in new]
            taps = [tap if not rest and 0 <= tap < tall else -1 for tap, rest in places]
            if max(taps) >= 0:
                found[quad, output] = tuple(taps)
        return found
