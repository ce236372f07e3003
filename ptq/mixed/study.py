"""A network and its samples, read once: what every allocation is built from and measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ptq import __version__
from ptq.calib_data import Preprocess
from ptq.errors import CalibrationError
from ptq.histogram import Histogram
from ptq.integer.outline import outline
from ptq.model import content_of, load
from ptq.opening import Run, begin
from ptq.passes.context import Batch, Context, Progress
from ptq.pipeline import collect_histograms
from ptq.recipe import Recipe

HELD_OUT = 4
"""One sample of so many is never calibrated on, only measured on."""

DO_NOT_ROUND = {
    "weight_bits": 8, "activation_bits": 8, "edge_bits": 8, "precision_map": {},
    "target": "onnx", "effort": "fast", "io": "float", "strict": False,
}  # fmt: skip
"""Parts of a recipe that no layer's rounding at a given width depends on."""


@dataclass(frozen=True)
class Study:
    """What is read once.

    run: as the pipeline begins it; its context streams the samples that are calibrated on.
    held_out: held_out(n) streams the others. folder: where results are kept between runs.
    """

    run: Run
    held_out: Callable[[int], Iterator[Batch]]
    folder: Path
    source: Path | None = None

    @property
    def context(self) -> Context:
        """The float model and the samples to calibrate on."""
        return self.run.context

    @property
    def recipe(self) -> Recipe:
        """Every choice but the widths."""
        return self.context.recipe

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """Of all activations."""
        return collect_histograms(self.context)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the float model, the samples, what rounds them, and ptq's version."""
        recipe = self.recipe.replace(**DO_NOT_ROUND)
        digest = hashlib.blake2b(f"{__version__} {recipe.to_json()}".encode(), digest_size=12)
        for part in content_of(self.context.model):
            digest.update(part)
        for batch in self.context.batches(64):
            for name, x in sorted(batch.items()):
                digest.update(f"{name} {x.dtype} {x.shape}".encode())
                digest.update(np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()

    @property
    def cache(self) -> Path:
        """The part of the folder that holds what depends on this very network and its samples."""
        return self.folder / self.fingerprint

    def with_precisions(self, precision_map: Mapping[str, str]) -> Run:
        """The run under another precision map."""
        recipe = self.recipe.replace(precision_map=dict(precision_map))
        context = replace(self.context, recipe=recipe, outline=outline(self.context.model, recipe))
        return replace(self.run, context=context)


def open_study(
    model: Any,
    calib: Any,
    recipe: Recipe,
    folder: Path,
    *,
    preprocess: Preprocess | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Prepare the model, open the samples, and set one of HELD_OUT of them apart.

    Raises:
        ModelError: the model is invalid, unsafe, or not supported as asked.
        CalibrationError: the samples do not fit, or there are fewer than HELD_OUT.
    """
    run = begin(load(model), calib, recipe, preprocess=preprocess, progress=progress)
    data = run.counted.calibration
    total = run.context.samples
    if total is not None and total < HELD_OUT * (data.fixed_batch or 1):
        raise CalibrationError(
            f"calibration: got {total} samples; wanted at least {HELD_OUT}, one of which is held "
            "out to measure on: give more data"
        )
    read, fixed = run.counted.batches, data.fixed_batch is not None
    used = Share(read, fixed, lambda index: index % HELD_OUT != HELD_OUT - 1)
    held = Share(read, fixed, lambda index: index % HELD_OUT == HELD_OUT - 1)
    context = replace(
        run.context,
        batches=used.batches,
        samples=None if total is None else total - total // HELD_OUT,
    )
    source = Path(model) if isinstance(model, str | Path) else None
    return Study(replace(run, context=context), held.batches, folder, source)


@dataclass(frozen=True)
class Share:
    """The samples that `takes` wants by number; by batches where the model fixes their size."""

    read: Callable[[int], Iterator[Batch]]
    whole: bool
    takes: Callable[[int], bool]

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size`."""
        first = 0
        for batch in self.read(size):
            lengths = {len(x) if x.ndim else 0 for x in batch.values()}
            rows = 1 if self.whole or len(lengths) > 1 else lengths.pop()
            keep = [i for i in range(rows) if self.takes(first + i)]
            first += rows
            if len(keep) == rows:
                yield batch
            elif keep:
                yield {name: x[keep] for name, x in batch.items()}
