"""Why a layer loses what it loses, in words: one small rule a cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.histogram import Histogram
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.plan import ActivationPlan, WeightPlan
from ptq.report.nearness import Tensor

Floats = npt.NDArray[np.float64]

OUTLIER = 6.0  # times the root mean square of a channel
FEW_LEVELS = 0.7  # of the non-zero values, on a quarter of the levels
CLIPPED = 0.002
SHIFT = 0.3
FEW_WEIGHTS = 16
COARSE_BITS = 6
COARSE_DB = 20.0


@dataclass(frozen=True)
class Evidence:
    """What is known about one layer; None where it has no such part, or nothing was measured.

    rows: the float weight, [channels, K]. rounded: after quantisation, the same shape.
    """

    unit: Unit | None
    weight: WeightPlan | None
    rows: Floats | None
    rounded: Floats | None
    grid: ActivationPlan | None
    input: Histogram | None
    output: Tensor | None


def evidence(
    unit: Unit | None,
    weight: WeightPlan | None,
    grid: ActivationPlan | None,
    seen: Tensor | None,
    output: Tensor | None,
) -> Evidence:
    """Gather it. grid, seen: of the activation that the layer reads; output: of what it makes."""
    rows = rounded = None
    if unit is not None and weight is not None:
        rows = _rows(unit, unit_weight(unit))
        rounded = _rows(unit, weight.dequantize())
    histogram = None if seen is None else seen.histogram
    return Evidence(unit, weight, rows, rounded, grid, histogram, output)


def _rows(unit: Unit, weight: npt.NDArray[Any]) -> Floats:
    moved = np.moveaxis(weight, unit_axis(unit), 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def causes(found: Evidence, blame: str) -> tuple[str, ...]:
    """What the rules about the part that is to blame have to say, and those about both."""
    rules = (*_RULES[blame], *_RULES["both"])
    return tuple(text for rule in rules if (text := rule(found)))


def _weight_outlier(e: Evidence) -> str:
    """A channel whose largest weight sets a scale that the others cannot use."""
    if e.rows is None or e.weight is None or e.weight.grid.bits > COARSE_BITS:
        return ""
    spread = np.sqrt(np.square(e.rows).mean(axis=1))
    reach = np.abs(e.rows).max(axis=1) / np.maximum(spread, 1e-30)
    worst, count = int(reach.argmax()), int((reach > OUTLIER).sum())
    if not count:
        return ""
    more = f" ({count} channels are like that)" if count > 1 else ""
    return (
        f"weight outlier: the largest weight of channel {worst} is {reach[worst]:.1f} times its "
        f"root mean square, so the others share few of {e.weight.grid.size} levels{more}"
    )


def _dead_channels(e: Evidence) -> str:
    if e.rows is None or e.rounded is None:
        return ""
    dead = int((np.abs(e.rows).max(axis=1) < 1e-8).sum())
    died = int((~e.rounded.any(axis=1)).sum()) - dead
    said = []
    if dead:
        said.append(f"{dead} of {len(e.rows)} channels are dead: their weights are zero")
    if died > 0:
        said.append(f"{died} of {len(e.rows)} channels died: all their codes mean zero")
    return "; ".join(said)


def _few_weights(e: Evidence) -> str:
    if e.rows is None or e.weight is None or e.weight.grid.bits > COARSE_BITS:
        return ""
    if e.rows.shape[1] > FEW_WEIGHTS:
        return ""
    return (
        f"depthwise: {e.rows.shape[1]} weights a channel, whose {e.weight.grid.bits}-bit rounding "
        "errors do not average out"
    )


def _coarse_weights(e: Evidence) -> str:
    """Few levels, and nothing else wrong with them."""
    if e.rows is None or e.rounded is None or e.weight is None or e.weight.grid.bits > COARSE_BITS:
        return ""
    noise, signal = np.square(e.rows - e.rounded).sum(), np.square(e.rows).sum()
    sqnr_db = 10 * np.log10(signal / noise) if noise else np.inf
    return (
        f"weights keep {sqnr_db:.1f} dB at {e.weight.grid.bits} bits" if sqnr_db < COARSE_DB else ""
    )


def _dead_input(e: Evidence) -> str:
    if e.input is None or e.input.total == 0 or e.input.zeros < e.input.total:
        return ""
    return "dead input: it is always zero"


def _clipped_range(e: Evidence) -> str:
    if e.input is None or e.grid is None or not e.input.counts.any():
        return ""
    low = (e.grid.low - e.grid.zero_point - 0.5) * float(e.grid.scale)
    high = (e.grid.high - e.grid.zero_point + 0.5) * float(e.grid.scale)
    edges, counts = e.input.support()
    middles = (edges[:-1] + edges[1:]) / 2
    share = counts[(middles < low) | (middles > high)].sum() / max(e.input.total, 1)
    if share < CLIPPED:
        return ""
    return (
        f"range: {100 * share:.1f} % of its input lies outside {low:.3g} to {high:.3g} and is "
        f"clipped (it reaches from {e.input.min:.3g} to {e.input.max:.3g})"
    )


def _input_outlier(e: Evidence) -> str:
    """Most values on few levels: some large ones stretch the range."""
    if e.input is None or e.grid is None or e.grid.grid.bits > COARSE_BITS:
        return ""
    edges, counts = e.input.support()
    if not len(counts):
        return ""
    middles = np.abs((edges[:-1] + edges[1:]) / 2)
    codes = e.grid.high - e.grid.low
    near = codes / 8 * float(e.grid.scale)  # a quarter of the levels around zero, both sides
    if e.input.min >= 0:
        near *= 2
    share = counts[middles <= near].sum() / counts.sum()
    if share < FEW_LEVELS:
        return ""
    reach = max(-e.input.min, e.input.max)
    return (
        f"input outliers: {100 * share:.0f} % of the non-zero inputs are below {near:.3g} and "
        f"share a quarter of {codes + 1} levels; the range reaches {reach:.3g}"
    )


def _shift(e: Evidence) -> str:
    if e.output is None or (share := e.output.shift_share) is None or share < SHIFT:
        return ""
    return (
        f"correlated bias: {100 * share:.0f} % of its output's error is a constant shift of the "
        "channels; bias correction, on more samples, takes such shifts away"
    )


_RULES: dict[str, tuple[Callable[[Evidence], str], ...]] = {
    "weight": (_weight_outlier, _few_weights, _coarse_weights),
    "activation": (_clipped_range, _input_outlier),
    "both": (_dead_channels, _dead_input, _shift),
}
