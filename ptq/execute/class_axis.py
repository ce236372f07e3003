"""Where the classes of an output are."""

from __future__ import annotations


def class_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the classes: [N, C], [N, T, C], [N, C, H, W]; None if there are none."""
    if len(shape) < 2:
        return None
    axis = 2 if len(shape) == 3 else 1
    return axis if shape[axis] > 1 else None
