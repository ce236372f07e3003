"""Stream the second moments of every weighted layer's input: what second-order rounding needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.execute.float import FloatRunner
from ptq.integer import claims
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.passes.context import Context, Progress
from ptq.passes.rounding import Curvature, damped

POSITIONS = 64
DAMP_SAMPLES = 10.0
DAMP_RANGE = (0.01, 0.1)
ROWS_A_COLUMN = 16
WIDEST = 8192
"""Inputs of a layer whose Gram matrix is kept: half a gigabyte, and as much for its factor."""

Array = npt.NDArray[Any]


@dataclass
class Moments:
    """Sums over the positions that one layer's weight is multiplied at.

    gram: [groups, K, K] float64, sum x x^T, or None of layers with more than WIDEST inputs;
    mean: [groups, K] float64, sum x; count: positions; samples: how many samples they came from.
    """

    gram: npt.NDArray[np.float64] | None
    mean: npt.NDArray[np.float64]
    count: int = 0
    samples: int = 0

    @cached_property
    def curvature(self) -> Curvature | None:
        """The matrix H of the layer error tr(dW H dW^T), of all that was added; None without it.

        Not centred, although bias correction removes the mean error: means differ from sample to
        sample. Damped in proportion to how few samples it was estimated from: DAMP_SAMPLES /
        samples of its mean diagonal, within DAMP_RANGE.
        """
        if self.gram is None:
            return None
        gram = self.gram / max(self.count, 1)
        share = float(np.clip(DAMP_SAMPLES / max(self.samples, 1), *DAMP_RANGE))
        return Curvature(damped(gram, share))

    def add(self, columns: Array, samples: int) -> None:
        """Add positions of so many samples: columns [groups, n, K]."""
        self.samples += samples
        wide = columns.astype(np.float64)
        if self.gram is not None:
            self.gram += np.matmul(wide.transpose(0, 2, 1), wide)
        self.mean += wide.sum(axis=1)
        self.count += wide.shape[1]


def collect_moments(
    context: Context, sharers: Sequence[Sequence[Unit]], positions: int = POSITIONS
) -> dict[str, Moments]:
    """Moments of what every weight meets in the float model, by the name of its first unit.

    One pass over the samples. Weights that read the same tensors the same way (queries, keys and
    values) share one object.
    sharers: for every weight the units that multiply with it.
    positions: at most so many output positions of an image are read; the first batch raises it
        where a wide layer would otherwise see fewer than ROWS_A_COLUMN rows a column.
    """
    readers = {tuple(reading(u) for u in units): units for units in sharers}
    taps = list(dict.fromkeys(unit.inputs[0] for units in readers.values() for unit in units))
    runner = FloatRunner(context.model, taps)
    moments = {key: empty_moments(units[0]) for key, units in readers.items()}
    generator = context.generator()
    size = context.batch_size(taps)
    for done, batch in enumerate(context.batches(size), 1):
        tapped = runner.run(batch)
        for key, units in readers.items():
            wanted = ROWS_A_COLUMN * moments[key].mean.shape[-1] // context.recipe.samples
            for unit in units:
                x = tapped[unit.inputs[0]]
                sample = columns(unit, x, max(positions, wanted), generator)
                moments[key].add(sample, len(x))
        context.report(Progress("collect second moments", done, context.batches_of(size)))
    runner.close()
    return {units[0].name: moments[tuple(reading(u) for u in units)] for units in sharers}


def reading(unit: Unit) -> tuple[object, ...]:
    """What decides which vectors a unit's weight meets."""
    if unit.kind != "conv":
        return (unit.inputs[0], weight_rows(unit).shape[1])
    window = (claims.integers(unit.node, name, ()) for name in ("strides", "dilations", "pads"))
    return (unit.inputs[0], unit_weight(unit).shape[1:], groups(unit), *window)


def collect_squares(
    context: Context, units: Sequence[Unit], samples: int, positions: int = POSITIONS
) -> dict[str, npt.NDArray[np.float64]]:
    """Mean squares of the float model's inputs to `units`, [groups, K] each: the Gram's diagonal.

    samples: about so many are read (whole batches).
    """
    taps = list(dict.fromkeys(unit.inputs[0] for unit in units))
    runner, generator = FloatRunner(context.model, taps), context.generator()
    sums = {unit.name: (0.0, 0) for unit in units}
    seen = 0
    for batch in context.batches(min(context.batch_size(taps), samples)):
        tapped = runner.run(batch)
        for unit in units:
            x = columns(unit, tapped[unit.inputs[0]], positions, generator)
            total, count = sums[unit.name]
            sums[unit.name] = total + np.square(x, dtype=np.float64).sum(1), count + x.shape[1]
        seen += context.samples_in(batch)
        if seen >= samples:
            break
    runner.close()
    return {name: np.asarray(total / max(count, 1)) for name, (total, count) in sums.items()}


def weight_rows(unit: Unit) -> npt.NDArray[np.float32]:
    """The weight with output channels first: [channels, K] float32."""
    weight = np.moveaxis(unit_weight(unit), unit_axis(unit), 0)
    return weight.reshape(len(weight), -1)


def groups(unit: Unit) -> int:
    """Number of convolution groups; 1 for matrix products."""
    return claims.integer(unit.node, "group", 1) if unit.kind == "conv" else 1


def empty_moments(unit: Unit) -> Moments:
    """Zero moments of a unit's input."""
    size = weight_rows(unit).shape[1]
    gram = np.zeros((groups(unit), size, size)) if size <= WIDEST else None
    return Moments(gram, np.zeros((groups(unit), size)))


def gram_bytes(unit: Unit) -> int:
    """Memory that a unit's Gram matrices take, bytes."""
    size = int(weight_rows(unit).shape[1])
    return 8 * groups(unit) * size**2 if size <= WIDEST else 0


def batches_of_units(
    sharers: Sequence[Sequence[Unit]], limit_bytes: int
) -> Iterator[list[Sequence[Unit]]]:
    """Consecutive weights whose Gram matrices together stay within a limit (one at least).

    sharers: for every weight the units that multiply with it.
    """
    part: list[Sequence[Unit]] = []
    used = 0
    for units in sharers:
        if part and used + gram_bytes(units[0]) > limit_bytes:
            yield part
            part, used = [], 0
        part.append(units)
        used += gram_bytes(units[0])
    if part:
        yield part


def columns(
    unit: Unit, x: Array, positions: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A random sample of the vectors that the weight is multiplied with.

    x: the layer's input, [n, c, *spatial] or [..., k] -> [groups, at most n * positions, K].
    Convolutions draw the same `positions` output positions in every image of the batch.
    """
    if unit.kind != "conv":
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > (limit := positions * len(x)):
            rows = rows[np.sort(generator.choice(len(rows), limit, replace=False))]
        return rows[None]
    windows = conv_windows(unit, x)
    spatial = windows.shape[2 : 2 + (windows.ndim - 2) // 2]
    total = int(np.prod(spatial))
    chosen = np.arange(total)
    if total > positions:
        chosen = np.sort(generator.choice(total, positions, replace=False))
    index: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(chosen, spatial))
    picked = np.moveaxis(windows[index], 2, 1)  # [n, position, c, *kernel]
    parts = picked.reshape(len(x) * len(chosen), groups(unit), -1)
    return np.ascontiguousarray(parts.transpose(1, 0, 2))


def conv_windows(unit: Unit, x: Array) -> Array:
    """Every window of a convolution's input: [n, c, *output, *kernel], a view where possible."""
    kernel = unit_weight(unit).shape[2:]
    n = len(kernel)
    strides = claims.integers(unit.node, "strides", (1,) * n)
    dilations = claims.integers(unit.node, "dilations", (1,) * n)
    pads = claims.integers(unit.node, "pads", (0,) * 2 * n)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    room = [(0, 0), (0, 0), *((pads[i], pads[i + n]) for i in range(n))]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, room), extent, axis=tuple(range(2, 2 + n))
    )
    stride = tuple(slice(None, None, s) for s in strides)
    dilate = tuple(slice(None, None, d) for d in dilations)
    return windows[(slice(None), slice(None), *stride, *dilate)]


def mean_column(unit: Unit, total: Array, samples: int) -> npt.NDArray[np.float64]:
    """The sum over samples and positions of the vectors the weight meets, and their number.

    total: the layer's input summed over the samples, [c, *spatial] or [..., k].
    Returns [groups * K + 1] float64: the sums, then the count.
    """
    if unit.kind != "conv":
        rows = total.reshape(-1, total.shape[-1])
        return np.append(rows.sum(axis=0, dtype=np.float64), len(rows) * samples)
    windows = conv_windows(unit, total[None])
    n = (windows.ndim - 2) // 2
    sums = windows.sum(axis=(0, *range(2, 2 + n)), dtype=np.float64)
    return np.append(sums.reshape(-1), samples * int(np.prod(windows.shape[2 : 2 + n])))
