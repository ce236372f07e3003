"""What every plan pass is given besides the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.outline import Outline, Unit
from ptq.recipe import Recipe

Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total` (None if unknown), in the stage's own units."""

    stage: str
    done: int
    total: int | None
    detail: str = ""


@dataclass(frozen=True)
class Context:
    """The float model (read-only), what becomes of it, and the samples.

    batches: batches(n) starts a new pass over the samples, n at a time.
    report: called with every Progress; raising from it cancels the run.
    """

    model: ir.Model
    outline: Outline
    recipe: Recipe
    batches: Callable[[int], Iterator[Batch]]
    report: Callable[[Progress], None] = lambda progress: None

    def weight_bits(self, unit: Unit) -> int:
        """Width of a unit's weights: the recipe's, or `edge_bits` at the first and last."""
        edge = self.recipe.edge_bits
        return edge if unit.edge and edge is not None else self.recipe.weight_bits

    def generator(self) -> np.random.Generator:
        """A random generator that depends on the recipe's seed only."""
        return np.random.default_rng(self.recipe.seed)
