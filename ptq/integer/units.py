"""Units, islands and sites: what an outline is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.integer.compounds import Compound
from ptq.precision import UNSAID, Precision


@dataclass(frozen=True)
class Unit:
    """One integer step to be, covering `nodes` of the float graph.

    inputs: activations (or constant operands) read as codes; outputs: written as codes, except
    by 'order' (ArgMax), which writes integers.
    clamp: bounds of a fused Relu or Clip.
    edge: the first or last multiplication on a path through the graph.
    precision: what the precision map says of it.
    factor: positive number that the product is multiplied with.
    compound: what several nodes were recognised as.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[ir.Node, ...]
    weight: ir.Value | None = None
    bias: ir.Value | None = None
    clamp: tuple[float, float] = (-float("inf"), float("inf"))
    edge: bool = False
    precision: Precision = UNSAID
    factor: float = 1.0
    compound: Compound | None = None

    @property
    def node(self) -> ir.Node:
        """The node that gives the unit its name."""
        return self.nodes[0]

    @property
    def output(self) -> str:
        """The only, or first, output."""
        return self.outputs[0]


@dataclass(frozen=True)
class Island:
    """A node that stays as it is: float with a reason, or shape arithmetic (reason None)."""

    name: str
    op_type: str
    node: ir.Node
    reason: str | None


@dataclass(frozen=True)
class Site:
    """A tensor that needs an ActivationPlan of its own.

    bits: width of its codes. limits: the values it can have (a fused clamp).
    fixed: softmax outputs, whose grid follows from the arithmetic.
    source: 'unit', 'input', 'island' or 'constant'.
    """

    name: str
    bits: int
    limits: tuple[float, float]
    source: str
    fixed: bool = False


@dataclass(frozen=True)
class Outline:
    """Units and islands in execution order, and the tensors that need a grid.

    aliases: tensor name -> the site whose grid its codes share (moves keep their input's grid).
    constants: constant operands by name.
    """

    items: tuple[Unit | Island, ...]
    sites: Mapping[str, Site]
    aliases: Mapping[str, str]
    constants: Mapping[str, ir.Value]

    @property
    def units(self) -> tuple[Unit, ...]:
        """The integer steps to be."""
        return tuple(item for item in self.items if isinstance(item, Unit))

    @property
    def islands(self) -> tuple[Island, ...]:
        """The float islands, each with its reason."""
        return tuple(i for i in self.items if isinstance(i, Island) and i.reason is not None)

    @property
    def weighted(self) -> tuple[Unit, ...]:
        """The units that own a weight."""
        return tuple(unit for unit in self.units if unit.weight is not None)

    def site(self, name: str) -> str:
        """The site whose grid the codes of `name` have."""
        return self.aliases.get(name, name)


def operands(node: ir.Node) -> list[ir.Value]:
    """Operands, and outer values that the node's bodies capture."""
    found = [v for v in node.inputs if v is not None]
    for attr in node.attributes.values():
        graphs = [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else []
        for graph in graphs:
            inner = list(ir.traversal.RecursiveGraphIterator(graph))
            found += [v for n in inner for v in n.inputs if v is not None]
            found += list(graph.outputs)
    return found


def name_of(value: ir.Value) -> str:
    """The name of a value; prepared models name all of them."""
    return str(value.name)
