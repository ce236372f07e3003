"""What every plan pass is given besides the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.calib_data.spec import input_specs, samples_in
from ptq.checkpoints import Checkpoints
from ptq.execute.taps import graph_values
from ptq.integer.layer_precision import weight_bits
from ptq.integer.units import Outline, Unit
from ptq.recipe import Recipe

TAPPED_BYTES = 64 << 20
LARGEST_BATCH = 64
HELD_OUT, FEWEST_HELD_OUT = 8, 16

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
    samples: how many there are, if that is known.
    memory_bytes: what tensors of all samples may take; more of them goes to temporary files.
    checkpoints: where stages that work in parts keep what is done, if anywhere.
    """

    model: ir.Model
    outline: Outline
    recipe: Recipe
    batches: Callable[[int], Iterator[Batch]]
    report: Callable[[Progress], None] = lambda progress: None
    samples: int | None = None
    memory_bytes: int = 2 << 30
    checkpoints: Checkpoints | None = None

    def weight_bits(self, unit: Unit) -> int:
        """Width of a unit's weights."""
        return weight_bits(unit, self.recipe)

    def batch_size(self, taps: Sequence[str]) -> int:
        """How many samples at a time keep the tapped float tensors within TAPPED_BYTES.

        Dynamic dimensions other than the batch count as one: an estimate.
        """
        values = graph_values(self.model)
        shapes = [values[name].shape for name in taps if name in values]
        sizes = [
            math.prod(d for d in list(shape)[1:] if isinstance(d, int)) for shape in shapes if shape
        ]
        return max(1, min(LARGEST_BATCH, TAPPED_BYTES // max(4 * sum(sizes), 1)))

    def batches_of(self, size: int) -> int | None:
        """How many batches of `size` one pass has, if known: the total of a progress bar."""
        return None if self.samples is None else -(-self.samples // size)

    def count(self) -> int:
        """How many samples there are, by a pass over them if that is not known."""
        if self.samples is not None:
            return self.samples
        return sum(map(self.samples_in, self.batches(LARGEST_BATCH)))

    def samples_in(self, batch: Batch) -> int:
        """How many samples a batch holds."""
        return samples_in(batch, input_specs(self.model))

    def held_out(self) -> npt.NDArray[np.intp]:
        """Samples that nothing is learned on, in order.

        One of HELD_OUT; of few samples FEWEST_HELD_OUT, but never more than half of them.
        """
        samples = self.count()
        order = self.generator().permutation(samples)
        share = max(samples // HELD_OUT, min(FEWEST_HELD_OUT, samples // 2), 1)
        return np.sort(order[:share])

    def generator(self) -> np.random.Generator:
        """A random generator that depends on the recipe's seed only."""
        return np.random.default_rng(self.recipe.seed)
