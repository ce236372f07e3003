"""Place sites: find the tensors that need a grid, and the width of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx_ir as ir

from ptq.grid import WIDE_BITS
from ptq.integer.claims import is_activation
from ptq.integer.layer_precision import MULTIPLIES, activation_bits
from ptq.integer.units import Island, Outline, Site, Unit, name_of
from ptq.recipe import Recipe


def mark_edges(items: list[Unit | Island]) -> list[Unit | Island]:
    """Mark the multiplications that have none before them on any path, or none behind them.

    Of residual networks that is the stem and the head: a shortcut past other layers does not make
    every layer that reads it a first one.
    """
    edge = _first(items) | _first(reversed(items), backward=True)
    return [
        replace(i, edge=True) if isinstance(i, Unit) and i.name in edge and i.weight else i
        for i in items
    ]


def _first(items: Iterable[Unit | Island], backward: bool = False) -> set[str]:
    """Weighted units that no other weighted unit leads to."""
    behind: set[str] = set()
    found: set[str] = set()
    for item in items:
        if isinstance(item, Unit):
            inputs, outputs = item.inputs, item.outputs
        else:
            inputs = tuple(name_of(v) for v in item.node.inputs if v is not None)
            outputs = tuple(name_of(v) for v in item.node.outputs)
        inputs, outputs = (outputs, inputs) if backward else (inputs, outputs)
        follows, weighted = not behind.isdisjoint(inputs), isinstance(item, Unit) and item.weight
        if weighted and not follows:
            found.add(item.name)
        if weighted or follows:
            behind |= set(outputs)
    return found


def place_sites(items: tuple[Unit | Island, ...], model: ir.Model, recipe: Recipe) -> Outline:
    """Find the tensors that need a grid, and the width of each."""
    units = [i for i in items if isinstance(i, Unit)]
    aliases: dict[str, str] = {}
    sources: dict[str, str] = {}
    limits: dict[str, tuple[float, float]] = {}
    fixed: set[str] = set()
    constants: dict[str, ir.Value] = {}
    graph_inputs = {name_of(v) for v in model.graph.inputs}
    written = {name for unit in units for name in unit.outputs}
    for unit in units:
        for value in unit.node.inputs:
            if value is not None and value.name in unit.inputs and not is_activation(value):
                constants[name_of(value)] = value
        for name in unit.inputs:
            if name not in written and name not in sources:
                known = "constant" if name in constants else "island"
                sources[name] = "input" if name in graph_inputs else known
        for name in unit.outputs:
            if unit.kind == "move":
                aliases[name] = aliases.get(unit.inputs[0], unit.inputs[0])
            elif unit.kind != "order":
                sources[name] = "unit"
                limits[name] = unit.clamp
                if unit.kind == "softmax":
                    fixed.add(name)
    bits = _widths(units, aliases, recipe)
    if recipe.residual_bits == WIDE_BITS:
        bits |= dict.fromkeys(_wide(units, aliases, constants, model), WIDE_BITS)
    said = _widths([u for u in units if u.precision.activation_bits], aliases, recipe)
    unbounded = (-float("inf"), float("inf"))
    sites = {
        name: Site(
            name,
            _edge_input_bits(recipe) if source == "input" and name not in said
            else 8 if name in fixed else bits.get(name, 8),
            limits.get(name, unbounded), source, name in fixed,
        )
        for name, source in sources.items()
    }  # fmt: skip
    return Outline(items, sites, aliases, constants)


def _widths(units: list[Unit], aliases: Mapping[str, str], recipe: Recipe) -> dict[str, int]:
    """Code widths: operands of multiplications as the recipe says, everything else 8 bits.

    A tensor with several readers takes the narrowest width that one of them asks for. Tensors that
    are only added or mapped keep the full container: narrowing them would cost accuracy and save
    nothing.
    """
    bits: dict[str, int] = {}
    for unit in units:
        if unit.kind not in MULTIPLIES:
            continue
        wanted = activation_bits(unit, recipe)
        for name in unit.inputs:
            site = aliases.get(name, name)
            bits[site] = min(bits.get(site, 8), wanted)
    return bits


def _wide(
    units: list[Unit], aliases: Mapping[str, str], constants: Iterable[str], model: ir.Model
) -> set[str]:
    """Sums, products and norms that norms read, or additions that lead to one, and nobody else.

    That is the residual stream of a transformer: a few of its channels are hundreds of times
    larger than the others, and the norm takes them apart again. Embeddings and other constants
    that are added up in it belong to it.
    """
    readers: dict[str, list[Unit]] = {}
    for unit in units:
        for name in unit.inputs if unit.kind != "move" else ():
            readers.setdefault(aliases.get(name, name), []).append(unit)
    kept = {aliases.get(name_of(v), name_of(v)) for v in model.graph.outputs}
    found: set[str] = set()

    def residual(name: str) -> bool:
        reading = readers.get(name, [])
        normed = [r.kind == "norm" or (r.kind == "add" and r.output in found) for r in reading]
        return any(normed) and all(r.kind in ("norm", "add") for r in reading)

    for unit in reversed(units):
        bounded = unit.clamp != (-float("inf"), float("inf"))
        candidate = unit.kind in ("gemm", "add", "norm") and not bounded
        if candidate and unit.output not in kept and residual(unit.output):
            found.add(unit.output)
    return found | {name for name in constants if name not in kept and residual(name)}


def _edge_input_bits(recipe: Recipe) -> int:
    """Inputs of the first and last layers keep 8 bits, unless these layers are like the others."""
    return recipe.activation_bits if recipe.edge_bits is None else 8
