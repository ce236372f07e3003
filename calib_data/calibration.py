"""Calibration: checked batches from any source, as often as wanted, in constant memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ptq.calib_data.conform import conform, with_batch
from ptq.calib_data.pixels import apply, is_pixels
from ptq.calib_data.preprocess import Preprocess
from ptq.calib_data.source import Source
from ptq.calib_data.spec import Array, Batch, InputSpec, batch_rows, common_batch
from ptq.errors import CalibrationError

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class Calibration:
    """Re-iterable batches for a model: dicts of input name -> array.

    Iterating yields single samples (batches of the model's fixed size, if it has one); `batches`
    yields larger ones. Every pass reads the source again: no more than a chunk is held.

    Attributes:
        limit: at most this many samples; of a source that knows its length a seeded random
            subset in the source's order, of another one the first.
    """

    source: Source
    inputs: tuple[InputSpec, ...]
    preprocess: Preprocess | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def samples(self) -> int | None:
        """How many samples one pass yields, if that is known without reading them."""
        total = self.source.samples
        return total if total is None or self.limit is None else min(total, self.limit)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on, if any."""
        return common_batch(self.inputs)[1]

    def __len__(self) -> int:
        """Number of batches that iterating yields; TypeError if the source cannot tell."""
        if self.samples is None:
            raise TypeError(f"{self.source.name}: the number of samples is not known beforehand")
        return self.samples // (self.fixed_batch or 1)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(1)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches of `batch_size` samples, the last one smaller.

        A model with a fixed batch dimension gets batches of that size instead (an incomplete
        last one is dropped, with a log line); inputs that have no common batch dimension come
        in the natural batches of the source.

        Raises:
            CalibrationError: a sample that does not fit the model, or none at all.
        """
        if batch_size < 1:
            raise CalibrationError(f"calibration: got batch size {batch_size}; wanted at least 1")
        stackable, fixed = common_batch(self.inputs)
        stream = rebatch(self._rows(), fixed or batch_size) if stackable else self._rows()
        count = 0
        for batch in stream:
            rows = batch_rows(batch)
            if fixed is not None and rows != fixed:
                _LOG.warning(
                    "%s: %s samples left over do not fill a batch of %s: dropped",
                    self.source.name,
                    rows,
                    fixed,
                )
                continue
            count += 1
            yield batch
        if count == 0:
            raise CalibrationError(
                f"{self.source.name}: no samples; wanted at least {fixed or 1}: give more data"
            )

    def _rows(self) -> Iterator[Batch]:
        """The source's natural batches: limited, preprocessed, checked."""
        stackable, _ = common_batch(self.inputs)
        chosen = self._chosen()
        first = 0
        for raw in self.source.read():
            batch = {spec.name: with_batch(raw[spec.name], spec) for spec in self.inputs}
            rows = (batch_rows(batch) if stackable else None) or 1
            keep = np.arange(first, first + rows)
            if chosen is not None:
                keep = keep[np.isin(keep, chosen)]
            if len(keep) < rows and stackable:
                batch = {name: x[keep - first] for name, x in batch.items()}
            if len(keep):
                prepared = self._preprocessed(batch)
                yield conform(prepared, self.inputs, f"{self.source.name}: sample", keep)
            first += rows
            if chosen is not None and (not len(chosen) or first > chosen[-1]):
                return

    def _chosen(self) -> Array | None:
        """Sorted indices of the samples that the limit leaves, or None for all."""
        total = self.source.samples
        if self.limit is None or self.source.limited:
            return None
        if total is not None and total <= self.limit:
            return None
        return choose(total, self.limit, self.seed)

    def _preprocessed(self, batch: Batch) -> Batch:
        def one(spec: InputSpec) -> Array:
            x = batch[spec.name]
            if not is_pixels(x, spec):
                return x
            if self.preprocess is not None:
                return apply(self.preprocess, x, spec)
            return apply(Preprocess(), x, spec) if spec.dtype == np.uint8 else x

        return {spec.name: one(spec) for spec in self.inputs}


def choose(total: int | None, limit: int, seed: int) -> Array:
    """Sorted indices of `limit` samples: random ones of `total`, or the first ones."""
    if total is None:
        return np.arange(limit)
    if limit >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def rebatch(stream: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Cut and join batches to `size` rows; batches that cannot be joined are kept apart."""
    parts: list[Batch] = []
    held = 0
    for batch in stream:
        rows = batch_rows(batch)
        if parts and (rows is None or _row_shapes(parts[0]) != _row_shapes(batch)):
            yield _join(parts)
            parts, held = [], 0
        if rows is None:
            yield batch
            continue
        start = 0
        while start < rows:
            take = min(size - held, rows - start)
            parts.append({name: x[start : start + take] for name, x in batch.items()})
            start, held = start + take, held + take
            if held == size:
                yield _join(parts)
                parts, held = [], 0
    if parts:
        yield _join(parts)


def _row_shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: x.shape[1:] for name, x in batch.items()}


def _join(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
