"""Claim every node of a graph: a kind of integer step, raw, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ptq.integer import claims
from ptq.integer.claims import Claim, Refusal, is_activation
from ptq.integer.compounds import Compound, find_compounds
from ptq.integer.layer_precision import map_precisions
from ptq.integer.patterns import matching
from ptq.precision import UNSAID
from ptq.recipe import Recipe

FREE = ("move", "concat", "elementwise", "shape")


def claim_nodes(
    nodes: list[ir.Node], recipe: Recipe
) -> tuple[dict[int, Claim], dict[int, Compound]]:
    """A claim for every node, and the compounds by the id of their last node.

    'raw' where no float tensor is involved or results are joined, 'inside' for the other nodes of a
    compound.
    """
    chosen = _selection(nodes, recipe)
    kept: dict[int, Claim] = {}
    for node in nodes:
        reads = [v for v in node.inputs if is_activation(v)]
        writes_float = any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
        rule = claims.RULES.get(node.op_type)
        if node.op_type in claims.SPREADS and claims.is_table(node.inputs[0]):
            kept[id(node)] = "move"
        elif not reads and not writes_float and not _has_body(node):
            kept[id(node)] = "raw"
        elif rule is not None and reads and node.domain in ("", "ai.onnx", "com.microsoft"):
            kept[id(node)] = rule(node)
        else:
            kept[id(node)] = Refusal("this operator has no integer form in ptq")
        if id(node) in chosen and kept[id(node)] not in ("raw", "shape"):
            kept[id(node)] = Refusal(chosen[id(node)])
    compounds = {id(p.nodes[-1]): p for p in find_compounds(nodes, set(chosen))}
    for last, compound in compounds.items():
        kept |= dict.fromkeys((id(n) for n in compound.nodes), "inside")
        kept[last] = compound.kind
    _leave_islands_whole(nodes, kept)
    if recipe.io == "float":
        _join_results_as_floats(nodes, kept)
    return kept, compounds


def _has_body(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attr.type in graphs for attr in node.attributes.values())


def _selection(nodes: list[ir.Node], recipe: Recipe) -> dict[int, str]:
    """Nodes that include, exclude and the precision map keep in float, with the reason."""
    out: dict[int, str] = {}
    if recipe.include:
        included = _ids(nodes, recipe.include, "--include")
        out |= {id(n): "not in --include" for n in nodes if id(n) not in included}
    out |= dict.fromkeys(_ids(nodes, recipe.exclude, "--exclude"), "excluded by the user")
    said = map_precisions(nodes, recipe.precision_map)
    floats = [id(node) for node in nodes if said.get(id(node), UNSAID).float]
    return out | dict.fromkeys(floats, "float in the precision map")


def _ids(nodes: list[ir.Node], patterns: Iterable[str], option: str) -> set[int]:
    return {id(node) for pattern in patterns for node in matching(nodes, pattern, option)}


def _leave_islands_whole(nodes: list[ir.Node], kept: dict[int, Claim]) -> None:
    """Refuse data movement that only carries floats from island to island."""
    fed: dict[int, bool] = {}  # id of a node fed by floats only -> fed by an island
    for node in nodes:
        sources = [v.producer() for v in node.inputs if v is not None and is_activation(v)]
        floats = [p is None or isinstance(kept[id(p)], Refusal) or id(p) in fed for p in sources]
        if kept[id(node)] in FREE and all(floats):
            fed[id(node)] = any(
                p is not None and (isinstance(kept[id(p)], Refusal) or fed[id(p)]) for p in sources
            )
    for node in reversed(nodes):
        users = [kept.get(id(u)) for v in node.outputs for u in v.consumers()]
        islands = [isinstance(claim, Refusal) for claim in users]
        carried = all(i or c == "shape" for i, c in zip(islands, users, strict=True))
        if id(node) in fed and carried and (fed[id(node)] or any(islands)):
            kept[id(node)] = Refusal("only carries data between float values")


def _join_results_as_floats(nodes: list[ir.Node], kept: dict[int, Claim]) -> None:
    """Leave a Concat that only outputs read, and what moves its result, until codes are floats.

    That is a copy, no arithmetic, and each operand keeps a grid of its own: a detector joins boxes
    of hundreds of pixels and scores below one, for which no 8-bit grid has levels enough.
    """
    last: set[int] = set()
    for node in reversed(nodes):
        users = [u for value in node.outputs for u in value.consumers()]
        if kept[id(node)] in ("concat", "move") and all(id(u) in last for u in users):
            last.add(id(node))
    for node in nodes:
        sources = [v.producer() for v in node.inputs if v is not None]
        joined = any(p is not None and id(p) in last and kept[id(p)] == "raw" for p in sources)
        if id(node) in last and (kept[id(node)] == "concat" or joined):
            kept[id(node)] = "raw"
