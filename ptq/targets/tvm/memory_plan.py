"""Offsets of all tensors in one arena: a tensor may lie where others are dead.

Greedy by size (Pisarchyk and Lee, arXiv 2001.03288, section 5): the largest first, each at the
lowest offset where no tensor that lives at the same time is in its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 64
SLACK_BYTES = 64
"""Vector kernels read a little beyond a tensor's end; what they read is multiplied by zero."""


@dataclass(frozen=True)
class Lifetime:
    """size: bytes. first, last: numbers of the calls between which the tensor must stay."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """True if both live during some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """offsets: bytes from the arena's start. size: bytes of the arena."""

    offsets: Mapping[str, int]
    size: int


def plan_memory(tensors: Mapping[str, Lifetime], *, reuse: bool = True) -> MemoryPlan:
    """Place every tensor; without `reuse` all of them can be read after a call."""
    offsets: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].size, tensors[n].first, n)):
        room = _rounded(tensors[name].size + SLACK_BYTES)
        others = [n for n in offsets if not reuse or tensors[n].meets(tensors[name])]
        taken = sorted((offsets[n], _rounded(tensors[n].size + SLACK_BYTES)) for n in others)
        place = 0
        for start, length in taken:
            if place + room <= start:
                break
            place = max(place, start + length)
        offsets[name] = place
        end = max(end, place + room)
    return MemoryPlan(offsets, end)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
