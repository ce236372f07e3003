"""The layers and the graph of a page, from the integer program, its plan and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.histogram import BINS, Histogram
from ptq.integer.flow import reads, writes
from ptq.integer.program import Program, Step
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.plan import ActivationPlan, WeightPlan
from ptq.report.flow import title
from ptq.report.nearness import Tensor
from ptq.report.page.content import Bars, GraphNode, LayerRow
from ptq.report.summary import Layer, layers

_BINS = 60
_CONTAINER_BITS = 8

Floats = npt.NDArray[np.float64]


def layer_rows(
    program: Program,
    units: Mapping[str, Unit],
    measured: Mapping[str, Tensor],
    stored_bits: Mapping[int, int],
) -> tuple[LayerRow, ...]:
    """One row a step. units: of the float model, by name; {} without it.

    stored_bits: width of a code -> bits that its container takes in the file.
    """
    steps = {step.name: step for step in program.steps}
    return tuple(
        _row(row, steps[row.name], program, units, measured, stored_bits) for row in layers(program)
    )


def _row(
    row: Layer,
    step: Step,
    program: Program,
    units: Mapping[str, Unit],
    measured: Mapping[str, Tensor],
    stored_bits: Mapping[int, int],
) -> LayerRow:
    output = next(ref.name for ref in writes(step) if ref.codes)
    stored: WeightPlan | None = getattr(step, "stored", None)
    weight = getattr(step, "weight", None)
    exact = _float_weight(units.get(step.name)) if stored is not None else None
    seen = measured.get(output)
    bits = 0 if row.weight_bits is None else stored_bits.get(row.weight_bits, _CONTAINER_BITS)
    return LayerRow(
        name=row.name,
        op=row.op,
        weight_bits=row.weight_bits,
        input_bits=row.input_bits,
        output_bits=row.output_bits,
        grid="" if weight is None else _grid(stored),
        weight_bytes=0 if weight is None else -(-weight.size * bits // 8),
        weight_sqnr_db=None if exact is None or stored is None else _sqnr_db(exact, stored),
        output_sqnr_db=None if seen is None else seen.fidelity.scores().sqnr_db,
        accumulator_bound=row.accumulator_bound,
        exact=row.exact,
        pair_safe=row.pair_safe,
        note=row.note,
        weights=None if exact is None or stored is None else weight_bars(exact, stored),
        outputs=None if seen is None else activation_bars(seen.histogram, program.codes[output]),
    )


def _grid(stored: WeightPlan | None) -> str:
    if stored is None:
        return "int8"
    grid = stored.grid
    powers = stored.powers if stored.powers is not None else np.array([grid.power])
    low, high = f"{powers.min():.3g}", f"{powers.max():.3g}"
    power = f"power {low}" if low == high else f"power {low} to {high}"
    shape = "uniform" if stored.uniform else power
    zero = "half levels" if grid.half else "symmetric" if grid.symmetric else "zero point"
    blocks = f", blocks of {stored.block_size}" if stored.block_size else ""
    return f"{shape}, {zero}{blocks}"


def _float_weight(unit: Unit | None) -> tuple[Floats, int] | None:
    """The float weight and its channel axis."""
    if unit is None or unit.weight is None:
        return None
    return unit_weight(unit).astype(np.float64), unit_axis(unit)


def _sqnr_db(exact: tuple[Floats, int], stored: WeightPlan) -> float | None:
    weight = exact[0]
    if weight.shape != stored.require_codes().shape:
        return None
    noise = float(np.square(weight - stored.dequantize()).sum())
    signal = float(np.square(weight).sum())
    return 10 * math.log10(signal / noise) if noise > 0 < signal else None


def weight_bars(exact: tuple[Floats, int], stored: WeightPlan) -> Bars | None:
    """The float weights in units of their channel's scale, and the levels of the decode table.

    Channels differ in their table; those that share the commonest one are drawn.
    """
    weight, axis = exact
    if weight.shape != stored.require_codes().shape:
        return None
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    tables, table, counts = np.unique(
        stored.tables(), axis=0, return_inverse=True, return_counts=True
    )
    common = int(counts.argmax())
    chosen = table.reshape(-1) == common
    values = rows[chosen] / stored.scale[chosen, None].astype(np.float64)
    levels = tables[common].astype(float)
    low, high = min(values.min(), levels.min() - 0.5), max(values.max(), levels.max() + 0.5)
    heights, _ = np.histogram(values, bins=_BINS, range=(low, high))
    unit = f"weight / scale, {int(chosen.sum())} of {len(rows)} channels"
    return Bars(float(low), float(high), _ints(heights), _floats(levels), unit)


def activation_bars(histogram: Histogram, grid: ActivationPlan) -> Bars | None:
    """The non-zero float values, and the levels of the grid's codes."""
    if histogram.min > histogram.max:
        return None
    codes = np.asarray(grid.levels or np.arange(grid.low, grid.high + 1))
    levels = (codes - grid.zero_point) * float(grid.scale)
    low, high = min(histogram.min, levels[0]), max(histogram.max, levels[-1])
    if low == high:
        return None
    middles = (histogram.first + np.arange(BINS) + 0.5) * histogram.width
    places = np.clip((middles - low) / (high - low) * _BINS, 0, _BINS - 1).astype(np.intp)
    heights = np.bincount(places, weights=histogram.counts, minlength=_BINS)
    zeros = 100 * histogram.zeros / max(histogram.total, 1)
    return Bars(
        float(low), float(high), _ints(heights), _floats(levels), f"value ({zeros:.0f} % are zero)"
    )


def _ints(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _floats(values: npt.NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values)


def graph_nodes(program: Program) -> tuple[GraphNode, ...]:
    """Every step, with the steps that it reads from."""
    made: dict[tuple[str, bool], int] = {}
    found = []
    for index, step in enumerate(program.steps):
        keys = [(ref.name, ref.codes) for ref in reads(step)]
        found.append(
            GraphNode(
                step.name or f"step {index}",
                title(step),
                _bits(step, program),
                tuple(sorted({made[key] for key in keys if key in made})),
            )
        )
        made |= {(ref.name, ref.codes): index for ref in writes(step)}
    return tuple(found)


def _bits(step: Step, program: Program) -> int | None:
    stored: WeightPlan | None = getattr(step, "stored", None)
    if stored is not None:
        return stored.grid.bits
    names = [ref.name for ref in writes(step) if ref.codes and ref.name in program.codes]
    return program.codes[names[0]].grid.bits if names else None
