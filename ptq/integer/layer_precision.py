"""What the precision map and the recipe say about every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from ptq.errors import RecipeError
from ptq.integer.patterns import matches, matching
from ptq.integer.units import Island, Unit
from ptq.precision import UNSAID, Precision
from ptq.recipe import Recipe

MULTIPLIES = ("conv", "gemm", "matmul")
OPTION = "--precision-map"


def map_precisions(
    nodes: Sequence[ir.Node], precision_map: Mapping[str, str]
) -> dict[int, Precision]:
    """What the map says of each node, by the node's id.

    Raises:
        RecipeError: a pattern that matches nothing.
    """
    said: dict[int, Precision] = {}
    for pattern, text in precision_map.items():
        for node in matching(nodes, pattern, OPTION):
            said[id(node)] = said.get(id(node), UNSAID).then(Precision.parse(text))
    return said


def assign_precision(
    items: Iterable[Unit | Island], nodes: Sequence[ir.Node], recipe: Recipe
) -> list[Unit | Island]:
    """Units that multiply, with what the map says of their first node.

    Raises:
        RecipeError: a pattern that asks for a width and matches no layer that could have it.
    """
    listed = list(items)
    said = map_precisions(nodes, recipe.precision_map)
    _require_effect([i for i in listed if isinstance(i, Unit)], recipe.precision_map)
    return [
        replace(item, precision=said.get(id(item.node), UNSAID))
        if isinstance(item, Unit) and item.kind in MULTIPLIES
        else item
        for item in listed
    ]


def weight_bits(unit: Unit, recipe: Recipe) -> int:
    """Width of a unit's weights: the map's, `edge_bits` at the first and last, or the recipe's."""
    edge = recipe.edge_bits if unit.edge else None
    return unit.precision.weight_bits or edge or recipe.weight_bits


def activation_bits(unit: Unit, recipe: Recipe) -> int:
    """Width of the codes that a multiplication reads; at the first and last layers 8 by default."""
    edge = 8 if unit.edge and recipe.edge_bits is not None else None
    return unit.precision.activation_bits or edge or recipe.activation_bits


def _require_effect(units: Sequence[Unit], precision_map: Mapping[str, str]) -> None:
    for pattern, text in precision_map.items():
        wanted = Precision.parse(text)
        hits = [unit for unit in units if matches(pattern, unit.node)]
        weighted = any(unit.weight is not None for unit in hits)
        if wanted.weight_bits is not None and not weighted:
            raise RecipeError(
                f"{OPTION} {pattern!r} = {text}: matches no layer that is quantised and has a "
                "weight; name a Conv, Gemm or MatMul"
            )
        if wanted.activation_bits is not None and all(u.kind not in MULTIPLIES for u in hits):
            raise RecipeError(
                f"{OPTION} {pattern!r} = {text}: matches no multiplication that is quantised; "
                "activations are narrowed where a Conv, Gemm or MatMul reads them"
            )
