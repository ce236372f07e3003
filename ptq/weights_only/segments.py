"""Cut a graph into segments whose products do not wait for one another.

A segment ends before the first product that reads what another product of it has made. So when a
segment's weights are rounded, its inputs come from layers that are rounded already, and no more
than its own weights need to be in memory. Between two products the cut lies where the fewest
tensors cross it, as late as possible: behind the sum of a residual connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ptq.integer.units import name_of, operands
from ptq.weights_only.products import Product


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes.

    products: in order. inputs: values that it reads and does not make. outputs: values it makes
    that later segments read. alive: all values that later segments read. joint: the only value
    that was computed from weights and crosses its end, or None.
    """

    nodes: tuple[str, ...]
    products: tuple[Product, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    alive: frozenset[str]
    joint: str | None


def cut(graph: ir.Graph, products: Sequence[Product]) -> tuple[Segment, ...]:
    """The segments up to the last product; what comes after it is never run."""
    nodes = list(graph)
    position = {id(node): index for index, node in enumerate(nodes)}
    nodes = nodes[: position[id(products[-1].node)] + 1]
    weighted = _weighted(nodes, products)
    starts = [0, *_starts(nodes, products, _crossing(nodes, weighted)), len(nodes)]
    ends = pairwise(starts)
    fed = {name_of(v) for v in graph.inputs}
    made = {name_of(v) for node in nodes for v in node.outputs} | fed
    reads = [{name_of(v) for v in operands(node)} & made for node in nodes]
    segments = []
    for first, last in ends:
        own = {name_of(v) for node in nodes[first:last] for v in node.outputs}
        alive = frozenset[str]().union(*reads[last:])
        before = {name_of(v) for node in nodes[:last] for v in node.outputs}
        crossing = alive & weighted & before
        segments.append(
            Segment(
                tuple(str(node.name) for node in nodes[first:last]),
                tuple(p for p in products if first <= position[id(p.node)] < last),
                tuple(sorted(set[str]().union(*reads[first:last]) - own)),
                tuple(sorted(own & alive)),
                alive,
                next(iter(crossing)) if len(crossing) == 1 else None,
            )
        )
    return tuple(segments)


def _starts(
    nodes: Sequence[ir.Node], products: Sequence[Product], crossing: Sequence[int]
) -> list[int]:
    """Where segments but the first begin."""
    chosen = {id(product.node) for product in products}
    made: set[str] = set()
    starts, last = [], 0
    for index, node in enumerate(nodes):
        if id(node) in chosen:
            if name_of(node.inputs[0]) in made:  # type: ignore[arg-type]
                window = range(index, last, -1)
                starts.append(min(window, key=lambda i: crossing[i]))
                made = set()
            last = index
        if id(node) in chosen or any(name_of(v) in made for v in operands(node)):
            made |= {name_of(v) for v in node.outputs}
    return starts


def _weighted(nodes: Sequence[ir.Node], products: Sequence[Product]) -> set[str]:
    """Values that depend on a product."""
    chosen = {id(product.node) for product in products}
    found: set[str] = set()
    for node in nodes:
        if id(node) in chosen or any(name_of(v) in found for v in operands(node)):
            found |= {name_of(v) for v in node.outputs}
    return found


def _crossing(nodes: Sequence[ir.Node], names: set[str]) -> list[int]:
    """How many of these values are made before node i and read by it or later, for every i."""
    change = np.zeros(len(nodes) + 2, int)
    made: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last |= {name_of(v): index for v in operands(node)}
        made |= {name_of(v): index for v in node.outputs}
    for name in names & last.keys() & made.keys():
        change[made[name] + 1] += 1
        change[last[name] + 1] -= 1
    return [int(n) for n in np.cumsum(change)]
