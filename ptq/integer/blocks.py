"""Blocks: parts of a network that one tensor enters and one tensor leaves.

1. The outline is cut after every item where at most one tensor flows on. What is between two cuts
   is a residual block, an attention with its skip, or a single step of a chain.
2. Parts without a weight join the next one (the last ones the one before).
3. Neighbours in a chain, with one weight each, are joined up to MAX_CHAIN weights, which is an
   inverted bottleneck that has no skip.

Where no cut exists (a second input used to the end, several heads) a block has more inputs or
outputs. Only the flow decides, never names or architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ptq.integer.units import Island, Outline, Unit, name_of, operands

MAX_CHAIN = 3

Item = Unit | Island


@dataclass(frozen=True)
class Block:
    """Consecutive items of an outline.

    inputs: tensors that come from before it; outputs: what is read after it, or leaves the model.
    """

    items: tuple[Item, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def weighted(self) -> tuple[Unit, ...]:
        """Its units that own a weight."""
        return tuple(i for i in self.items if isinstance(i, Unit) and i.weight is not None)

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Its float nodes in order, each once."""
        found = [n for i in self.items for n in (i.nodes if isinstance(i, Unit) else (i.node,))]
        return tuple({id(node): node for node in found}.values())

    @property
    def name(self) -> str:
        """What it is called in reports: its first weighted unit, or its first item."""
        return (self.weighted or self.items)[0].name


def find_blocks(model: ir.Model, outline: Outline) -> tuple[Block, ...]:
    """All items of the outline of `model`, in order, in blocks."""
    flow = _Flow(model, outline.items)
    parts: list[list[Item]] = [[]]
    for position, item in enumerate(outline.items):
        parts[-1].append(item)
        if len(flow.live(position)) <= 1 and position + 1 < len(outline.items):
            parts.append([])
    blocks, start = [], 0
    for part in _join_chains(_join_weightless(parts)):
        blocks.append(flow.block(start, start + len(part)))
        start += len(part)
    return tuple(blocks)


def whole_network(model: ir.Model, outline: Outline) -> Block:
    """All items of the outline as one block."""
    return _Flow(model, outline.items).block(0, len(outline.items))


class _Flow:
    """Which item reads and writes which tensor."""

    def __init__(self, model: ir.Model, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self.writes = [written(item) for item in items]
        made = {name_of(v) for v in model.graph.inputs}.union(*self.writes)
        self.reads = [[name for name in _reads(item) if name in made] for item in items]
        self.last = {name: i for i, names in enumerate(self.reads) for name in names}
        self.first = {name: i for i, names in enumerate(self.writes) for name in names}
        self.results = {name_of(v) for v in model.graph.outputs}

    def live(self, position: int) -> set[str]:
        """Tensors made up to this item, or given, and read after it."""
        return {
            name
            for name, last in self.last.items()
            if last > position and self.first.get(name, -1) <= position
        }

    def block(self, start: int, stop: int) -> Block:
        """The items start .. stop - 1."""
        here = [name for names in self.writes[start:stop] for name in names]
        reads = dict.fromkeys(name for names in self.reads[start:stop] for name in names)
        inputs = tuple(name for name in reads if self.first.get(name, -1) < start)
        leaving = (n for n in here if self.last.get(n, -1) >= stop or n in self.results)
        return Block(self.items[start:stop], inputs, tuple(leaving))


def written(item: Item) -> list[str]:
    """Names of what a unit or an island makes."""
    if isinstance(item, Unit):
        return list(item.outputs)
    return [name_of(v) for v in item.node.outputs if v.name]


def _reads(item: Item) -> list[str]:
    nodes = item.nodes if isinstance(item, Unit) else (item.node,)
    inner = {v.name for node in nodes for v in node.outputs}
    found = [v for node in nodes for v in operands(node) if v.const_value is None and v.name]
    return list(dict.fromkeys(name_of(v) for v in found if v.name not in inner))


def _weights(items: Sequence[Item]) -> int:
    return sum(isinstance(i, Unit) and i.weight is not None for i in items)


def _join_weightless(parts: Sequence[list[Item]]) -> list[list[Item]]:
    joined: list[list[Item]] = []
    waiting: list[Item] = []
    for part in parts:
        waiting = waiting + part
        if _weights(waiting):
            joined.append(waiting)
            waiting = []
    if waiting and joined:
        joined[-1] = joined[-1] + waiting
    elif waiting:
        joined.append(waiting)
    return joined


def _join_chains(parts: Sequence[list[Item]]) -> list[list[Item]]:
    joined: list[list[Item]] = []
    chain = 0  # weights of the chain that the last part is, 0 if it is something larger
    for part in parts:
        single = _weights(part) <= 1
        if single and 0 < chain < MAX_CHAIN:
            joined[-1] = joined[-1] + part
            chain += 1
        else:
            joined.append(list(part))
            chain = 1 if single else 0
    return joined
