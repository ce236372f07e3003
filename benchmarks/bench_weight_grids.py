"""Weight-space SQNR of one network's weights on many grids: which shape of levels suits weights.

    python benchmarks/bench_weight_grids.py [MODEL.onnx ...]

SQNR in dB over all weights but the first layer's, nearest rounding, batch norm folded, scales not
nudged; by default on both shared models (PTQ_SHARED, default ../shared). "Layer": one exponent and
half offset a layer, "channel": one for each output channel. Zero points are searched per channel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_rivals import CASES, SHARED

import ptq
from ptq.grid import Grid
from ptq.integer.outline import outline
from ptq.model import load
from ptq.passes.collect_grams import weight_rows
from ptq.passes.prepare import prepare
from ptq.passes.rounding import candidate_grids, shape_errors

BITS = (4, 3, 2)
POWERS = tuple(1 / a for a in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5))
ROUNDS = 30  # of k-means
Rows = list[np.ndarray]
Method = Callable[[Rows, int], float]


def uniform_layer_clip(layers: Rows, bits: int) -> float:
    """One scale a layer, the best of many clip factors."""
    grid = Grid(bits, symmetric=True)
    whole = [w.reshape(1, -1) for w in layers]
    return sum(float(shape_errors(w, [grid]).sum()) for w in whole)


def on_grid(grid: Grid, ratios: Sequence[float] = ()) -> Method:
    """Scale (and zero point, if the grid has one) per channel; ratios: clip factors."""

    def error(layers: Rows, bits: int) -> float:
        this = replace(grid, bits=bits)
        return sum(float(shape_errors(w, [this], ratios=ratios).sum()) for w in layers)

    return error


def best_shape(
    per: str, base: Grid | None = None, halves: Sequence[bool] = (False, True)
) -> Method:
    """The best exponent, with half offset or without, of each layer or each channel."""

    def error(layers: Rows, bits: int) -> float:
        shapes = candidate_grids(replace(base or Grid(), bits=bits), POWERS)
        shapes = [shape for shape in shapes if shape.half in halves]
        errors = [shape_errors(w, shapes) for w in layers]
        if per == "channel":
            return sum(float(e.min(axis=0).sum()) for e in errors)
        return sum(float(e.sum(axis=1).min()) for e in errors)

    return error


def one_exponent_unclipped(layers: Rows, bits: int) -> float:
    """PowerQuant: the best global exponent, abs-max scales."""
    shapes = candidate_grids(Grid(bits, symmetric=True), POWERS)
    errors = sum(shape_errors(w, shapes, ratios=(1.0,)).sum(axis=1) for w in layers)
    return float(np.min(errors))


def codebook(layers: Rows, bits: int) -> float:
    """k-means on each layer's weights over their channel's spread: the bound of any one table."""
    error = 0.0
    for w in layers:
        scale = np.maximum(w.std(axis=1, keepdims=True), 1e-12)
        x, weight = (w / scale).ravel(), np.broadcast_to(scale**2, w.shape).ravel()
        centres = np.quantile(x, (np.arange(1 << bits) + 0.5) / (1 << bits))
        for _ in range(ROUNDS):
            nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, x)
            mass = np.bincount(nearest, weight, 1 << bits)
            total = np.bincount(nearest, weight * x, 1 << bits)
            centres = np.sort(np.where(mass > 0, total / np.maximum(mass, 1e-30), centres))
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, x)
        error += float((weight * (centres[nearest] - x) ** 2).sum())
    return error


METHODS: dict[str, Method] = {
    "uniform symmetric, abs-max": on_grid(Grid(symmetric=True), (1.0,)),
    "uniform symmetric, clip per layer": uniform_layer_clip,
    "PowerQuant, a = 0.5": on_grid(Grid(4, power=2.0, symmetric=True), (1.0,)),
    "PowerQuant, one global a": one_exponent_unclipped,
    "power symmetric, a per layer, clip per channel": best_shape("layer", Grid(symmetric=True)),
    "uniform, zero point, clip per channel": on_grid(Grid()),
    "power, zero point, a per layer": best_shape("layer", halves=(False,)),
    "the same with h = 1/2": best_shape("layer", halves=(True,)),
    "power, zero point, a and h per layer": best_shape("layer"),
    "power, zero point, a and h per channel": best_shape("channel"),
    "the same per layer, tables that end at 64": best_shape("layer", Grid(end=64)),
    "k-means codebook per layer": codebook,
}


def layers_of(path: Path) -> Rows:
    """The weights [channels, K] of every layer but the first."""
    model = prepare(load(path))
    units = outline(model, ptq.Recipe()).weighted[1:]
    return [weight_rows(unit).astype(np.float64) for unit in units]


def main() -> None:
    """Print a table for every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    models = parser.parse_args().models or [SHARED / case.model for case in CASES.values()]
    for path in models:
        layers = layers_of(path)
        energy = sum(float(np.square(w).sum()) for w in layers)
        print(f"\n{path.stem:48}" + "".join(f"{f'W{bits}':>8}" for bits in BITS))
        for title, method in METHODS.items():
            found = [10 * np.log10(energy / method(layers, bits)) for bits in BITS]
            print(f"{title:48}" + "".join(f"{db:8.2f}" for db in found), flush=True)


if __name__ == "__main__":
    main()
