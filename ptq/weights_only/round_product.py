"""Round one product's weight to blocks of columns with a scale and a zero point each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.grid import Floats, Grid
from ptq.passes.rounding import Feedback, damped, gptq, row_errors, target_weight
from ptq.passes.rounding.block_scales import (
    Blocked,
    nearest_blocks,
    refine_blocks,
    search_block_scales,
    squant_blocks,
)
from ptq.recipe import Recipe
from ptq.targets.matmul_nbits import BlockWeight, stored_scale

Array = npt.NDArray[Any]

DAMP = 0.01
PULL = 0.01
"""Ridge towards the float weight when a layer makes up for the errors of those before it."""


@dataclass
class Moments:
    """Second moments of a layer's inputs, summed over positions.

    gram: [1, K, K] float64, sum x^ x^^T, x^ the input behind rounded layers.
    cross: the same of x x^^T, x the float network's, where that is asked for.
    """

    gram: Array
    cross: Array
    count: int = field(default=0)

    @staticmethod
    def of(size: int) -> Moments:
        """Nothing yet, for K = size."""
        return Moments(np.zeros((1, size, size)), np.zeros((1, size, size)))

    def scaled(self, scale: Array) -> Moments:
        """Those of x / scale; scale: [K]."""
        both = np.outer(scale, scale)
        return Moments(self.gram / both, self.cross / both, self.count)

    def add(self, rounded: Array, exact: Array | None) -> None:
        """Add positions: [..., K] each."""
        y = rounded.reshape(-1, rounded.shape[-1]).astype(np.float32, copy=False)
        self.gram[0] += y.T @ y
        self.count += len(y)
        if exact is not None:
            self.cross[0] += exact.reshape(y.shape).astype(np.float32, copy=False).T @ y


@dataclass(frozen=True)
class Outcome:
    """How a product fared: what is left of it when its weight is written.

    error: of its output on the samples, relative to the output's energy, after the closed form;
    None without samples. learned: codes and scales were learned with those of its block then.
    alpha: exponent that its inputs were scaled with, zero if they were not.
    """

    error: float | None
    learned: bool = False
    alpha: float = 0.0


@dataclass(frozen=True)
class Rounded:
    """A rounded weight. exact: what was rounded, [N, padded K]."""

    blocked: Blocked
    inputs: int
    exact: Array
    outcome: Outcome

    def weight(self, compute: str) -> BlockWeight:
        """As it is stored for a product that computes so."""
        found, bits = self.blocked, self.blocked.grid.bits
        return BlockWeight(found.codes, found.scale, found.zero_point, bits, self.inputs, compute)


def round_product(w: Floats, bits: int, recipe: Recipe, moments: Moments | None) -> Rounded:
    """The weight [N, K] on a grid of so many bits, by the recipe's rounding.

    moments: of its inputs; None rounds by the weights alone.
    """
    size = recipe.block_size
    inputs = w.shape[1]
    exact = padded(np.asarray(w, np.float64), size)
    grid = Grid(bits, symmetric=recipe.symmetric)
    if moments is None or recipe.rounding != "gptq":
        found = by_weights(exact, grid, size, recipe.rounding)
    else:
        gram = pad_gram(moments.gram / max(moments.count, 1), size)
        if recipe.match_float:
            cross = pad_gram(moments.cross / max(moments.count, 1), size)
            exact = target_weight(exact, cross, gram, PULL)
        found = second_order(exact, grid, size, damped(gram, DAMP), recipe)
    found = replace(found, scale=stored_scale(found.scale))
    error = None if moments is None else relative_error(padded(w, size), found, moments, size)
    return Rounded(found, inputs, exact, Outcome(error))


def by_weights(w: Array, grid: Grid, size: int, rounding: str) -> Blocked:
    """Nearest levels, or SQuant's in every block, on the scales with the least weight error."""
    scale, zero_point = search_block_scales(w, grid, size)
    alone = squant_blocks if rounding == "squant" else nearest_blocks
    return alone(w, grid, stored_scale(scale), zero_point)


def second_order(w: Array, grid: Grid, size: int, gram: Array, recipe: Recipe) -> Blocked:
    """GPTQ on two choices of scales, the better one of every row; then descent and refitting."""
    trials = []
    for weighing in (gram, None):
        scale, zero_point = search_block_scales(w, grid, size, weighing)
        scale = stored_scale(scale)
        feedback = Feedback(recipe.act_order, damp=0.0)
        codes = gptq(w, gram, grid, scale, zero_point, feedback)
        trials.append(Blocked(grid, codes, scale, zero_point))
    errors = [row_errors(w, trial.dequantize(), gram) for trial in trials]
    first = (errors[0] <= errors[1])[:, None]
    parts = {
        name: np.where(first, getattr(trials[0], name), getattr(trials[1], name))
        for name in ("codes", "scale", "zero_point")
    }
    best = Blocked(grid, **parts)
    return refine_blocks(w, best, gram) if recipe.descent else best


def relative_error(w: Floats, found: Blocked, moments: Moments, size: int) -> float:
    """|x^ (W^ - W)^T|^2 / |x^ W^T|^2 over the samples."""
    gram = pad_gram(moments.gram, size)
    energy = float(row_errors(np.zeros_like(w), w, gram).sum())
    return float(row_errors(w, found.dequantize(), gram).sum()) / energy if energy else 0.0


def padded(w: Floats, size: int) -> Floats:
    """Columns of zeros up to whole blocks: [N, K] -> [N, blocks * size]."""
    return np.pad(w, ((0, 0), (0, -w.shape[1] % size)))


def pad_gram(gram: Array, size: int) -> Array:
    """The same for the columns of a Gram matrix [1, K, K]."""
    short = -gram.shape[-1] % size
    return np.pad(gram, ((0, 0), (0, short), (0, short)))
