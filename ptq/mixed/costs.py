"""What each layer costs at each width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ptq.execute.float import FloatRunner
from ptq.integer.units import Unit
from ptq.integer.weights import unit_axis, unit_weight
from ptq.passes.context import Context
from ptq.targets.storage import stored_bytes


@dataclass(frozen=True)
class LayerSize:
    """A weighted layer: how many weights, output channels and multiplications (one sample)."""

    weights: int
    channels: int
    multiplications: int


def layer_sizes(context: Context) -> dict[str, LayerSize]:
    """Sizes of the weighted layers, measured on one batch."""
    units = context.outline.weighted
    outputs = [str(unit.node.outputs[0].name) for unit in units]
    runner = FloatRunner(context.model, outputs)
    batch = next(context.batches(1))
    rows = max((len(x) for x in batch.values() if x.ndim), default=1)
    values = runner.run(batch)
    runner.close()
    return {
        unit.name: _size(unit, values[name].size // rows)
        for unit, name in zip(units, outputs, strict=True)
    }


def _size(unit: Unit, elements: int) -> LayerSize:
    weight = unit_weight(unit)
    channels = weight.shape[unit_axis(unit)]
    return LayerSize(weight.size, channels, weight.size // channels * elements)


def weight_costs(
    sizes: Mapping[str, LayerSize], name: str, weight_bits: int, activation_bits: int
) -> dict[str, float]:
    """Costs of one layer at these widths, in the units of the budgets.

    average_bits: its share of the average over all weights of the network. bops: multiplications
    times both widths (HAWQ-V3, arXiv 2011.10680). size_bytes: of its stored codes.
    """
    size = sizes[name]
    total = sum(s.weights for s in sizes.values())
    return {
        "average_bits": size.weights * weight_bits / total,
        "bops": float(size.multiplications) * weight_bits * activation_bits,
        "size_bytes": float(stored_bytes(size.weights, size.channels, weight_bits)),
    }


def average_bits(sizes: Mapping[str, LayerSize], widths: Mapping[str, int]) -> float:
    """The mean width over all weights of all layers, first and last ones too."""
    total = sum(size.weights for size in sizes.values())
    return float(np.sum([sizes[name].weights * bits for name, bits in widths.items()])) / total
