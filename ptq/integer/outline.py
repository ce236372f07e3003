"""Outline: which float nodes become which integer step, before any number is known.

1. Every node is claimed by a rule of `claims` or refused with a reason (a float island).
2. Nodes that only carry data between floats stay with them.
3. What belongs together melts into one unit, and the tensors between units get a site.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.errors import UnsupportedModelError
from ptq.integer.claim_nodes import claim_nodes
from ptq.integer.collect_units import UnitCollector
from ptq.integer.layer_precision import assign_precision
from ptq.integer.place_sites import mark_edges, place_sites
from ptq.integer.units import Island, Outline, Site, Unit
from ptq.recipe import Recipe

__all__ = ["Island", "Outline", "Site", "Unit", "outline"]


def outline(model: ir.Model, recipe: Recipe) -> Outline:
    """Decide what becomes integer.

    Raises:
        UnsupportedModelError: `recipe.strict` and something would stay float.
        RecipeError: a pattern (include, exclude, precision map) that matches nothing.
    """
    nodes = list(model.graph)
    kept, compounds = claim_nodes(nodes, recipe)
    builder = UnitCollector(kept, compounds)
    for node in nodes:
        builder.add(node)
    for value in model.graph.outputs:
        builder.materialise(value)
    items = tuple(assign_precision(mark_edges(builder.items), nodes, recipe))
    islands = [i for i in items if isinstance(i, Island) and i.reason is not None]
    if recipe.strict and islands:
        listed = "; ".join(f"{i.name} ({i.op_type}): {i.reason}" for i in islands[:8])
        raise UnsupportedModelError(
            f"{len(islands)} nodes would stay float: {listed}. Drop --strict to keep them as float "
            "islands, or change the model"
        )
    return place_sites(items, model, recipe)
