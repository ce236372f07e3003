"""Weights and Gram matrices of the rounding tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ptq.grid import Grid
from ptq.passes.rounding import search_scales

Array = npt.NDArray[np.float64]

GRIDS = (
    Grid(2),
    Grid(3, symmetric=True),
    Grid(4),
    Grid(8),
    Grid(2, half=True),
    Grid(4, half=True),
    Grid(3, power=1.3),
    Grid(4, power=1.25, half=True),
)


@dataclass(frozen=True)
class Case:
    """w: [rows, K]; gram: [groups, K, K]; scale, zero_point: [rows], searched."""

    w: Array
    gram: Array
    grid: Grid
    scale: Array
    zero_point: npt.NDArray[np.int64]


def case(
    seed: int, grid: Grid, rows: int = 12, size: int = 24, groups: int = 1, samples: int = 200
) -> Case:
    """Correlated, rectified inputs and heavy-tailed weights."""
    generator = np.random.default_rng(seed)
    w = generator.standard_t(5, (rows, size)) * 0.05
    mix = generator.normal(size=(groups, size, size)) / np.sqrt(size)
    x = np.maximum(generator.normal(size=(groups, samples, size)) @ mix, 0.0)
    gram = x.transpose(0, 2, 1) @ x / samples
    scale, zero_point = search_scales(w, grid)
    return Case(w, gram, grid, np.asarray(scale, np.float64), np.asarray(zero_point, np.int64))
