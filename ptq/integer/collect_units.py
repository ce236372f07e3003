"""Collect units: walk the claimed nodes in order and melt what belongs together.

Elementwise nodes of one source tensor become one table, made when somebody needs its result; a
Relu or Clip after an arithmetic unit becomes its saturation; a bias Add joins its MatMul.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ptq.integer.claims import Claim, Refusal, channel_axis, constant, is_activation
from ptq.integer.compounds import Compound
from ptq.integer.units import Island, Unit, name_of, operands

UNBOUNDED = (-float("inf"), float("inf"))
ARITHMETIC = ("conv", "gemm", "matmul", "add", "multiply", "mean", "window")


@dataclass(frozen=True)
class _Region:
    """Elementwise nodes that compute one tensor from one root."""

    root: ir.Value
    nodes: tuple[ir.Node, ...]


class UnitCollector:
    """Walks the nodes in order and collects units; tables are made when somebody needs them."""

    def __init__(self, kept: dict[int, Claim], compounds: dict[int, Compound]) -> None:
        self.kept = kept
        self.compounds = compounds
        self.items: list[Unit | Island] = []
        self.regions: dict[str, _Region] = {}
        self.made: dict[str, int] = {}  # tensor name -> index of the unit that writes it
        self.absorbed: set[int] = set()
        self.tests: dict[str, tuple[ir.Node, _Region]] = {}

    def add(self, node: ir.Node) -> None:
        """Turn one node into a unit, an island, or a part of a table."""
        claim = self.kept[id(node)]
        if id(node) in self.absorbed or claim == "inside":
            return
        if (compound := self.compounds.get(id(node))) is not None:
            self._compound(compound)
            return
        if claim == "raw" or isinstance(claim, Refusal):
            reason = claim.reason if isinstance(claim, Refusal) else None
            self._island(node, reason)
        elif claim == "shape":
            self._island(node, None)
        elif claim == "test":
            self._test(node)
        elif claim == "piecewise":
            self._piecewise(node)
        elif claim == "elementwise" or (claim in ("add", "multiply") and self._same_root(node)):
            self._elementwise(node)
        else:
            self._unit(node, str(claim))

    def materialise(self, value: ir.Value | None) -> None:
        """Make sure that the tensor exists as codes: emit its table if it is a region's result."""
        if value is None or value.name is None or value.name in self.made:
            return
        region = self.regions.get(value.name)
        if region is None or not is_activation(value):
            return
        self.materialise(region.root)
        last = region.nodes[-1]
        self._append(
            Unit(
                "lookup",
                str(last.name),
                (name_of(region.root),),
                (value.name,),
                region.nodes,
            )
        )

    def _append(self, unit: Unit) -> None:
        for output in unit.outputs:
            self.made[output] = len(self.items)
        self.items.append(unit)

    def _island(self, node: ir.Node, reason: str | None) -> None:
        for value in operands(node):
            self.materialise(value)
        self.items.append(Island(str(node.name), node.op_type, node, reason))

    def _root(self, value: ir.Value) -> _Region:
        return self.regions.get(name_of(value), _Region(value, ()))

    def _same_root(self, node: ir.Node) -> bool:
        """Both operands are functions of one tensor: x * sigmoid(x)."""
        sources = [v for v in node.inputs if v is not None]
        if not all(is_activation(v) for v in sources):
            return False
        roots = {id(self._root(v).root) for v in sources}
        return len(roots) == 1 and any(self._root(v).nodes for v in sources)

    def _elementwise(self, node: ir.Node) -> None:
        value = next(v for v in node.inputs if v is not None and is_activation(v))
        if self._fuse_clamp(node, value) or self._fuse_factor(node, value):
            return
        parts = self._parts(node)
        nodes = list(dict.fromkeys(n for part in parts for n in part.nodes))
        region = _Region(parts[0].root, (*nodes, node))
        if len({channel_axis(v) for n in region.nodes for v in n.inputs if _varies(v)}) > 1:
            self.materialise(value)
            region = _Region(value, (node,))
        self.regions[name_of(node.outputs[0])] = region

    def _test(self, node: ir.Node) -> None:
        """A comparison: a part of the tables of those who read it."""
        (part,) = self._parts(node)
        region = _Region(part.root, (*part.nodes, node))
        self.tests[name_of(node.outputs[0])] = node, region

    def _parts(self, node: ir.Node) -> list[_Region]:
        return [self._root(v) for v in node.inputs if v is not None and is_activation(v)]

    def _piecewise(self, node: ir.Node) -> None:
        """A Where between functions of the tensor that its condition is a test of."""
        test, region = next(self.tests[v.name] for v in node.inputs if v and v.name in self.tests)
        parts = [region, *self._parts(node)]
        nodes = tuple(dict.fromkeys(n for part in parts for n in part.nodes))
        axes = {channel_axis(v) for n in (*nodes, node) for v in n.inputs if _varies(v)}
        if len({id(part.root) for part in parts}) == 1 and len(axes) <= 1:
            self.regions[name_of(node.outputs[0])] = _Region(region.root, (*nodes, node))
            return
        if id(test) not in self.absorbed:
            self.absorbed.add(id(test))
            self._island(test, "it chooses between functions of other tensors")
        self._island(node, "it chooses between functions of other tensors than the one it tests")

    def _fuse_clamp(self, node: ir.Node, value: ir.Value) -> bool:
        """A Relu or Clip after an arithmetic unit that nobody else reads is its saturation."""
        index = self.made.get(name_of(value))
        bounds = clamp_bounds(node)
        if index is None or bounds is None or len(value.uses()) != 1 or value.is_graph_output():
            return False
        unit = self.items[index]
        if not isinstance(unit, Unit) or unit.kind not in ARITHMETIC:
            return False
        low, high = max(unit.clamp[0], bounds[0]), min(unit.clamp[1], bounds[1])
        output = name_of(node.outputs[0])
        self.items[index] = replace(
            unit, outputs=(output,), nodes=(*unit.nodes, node), clamp=(low, high)
        )
        self.made[output] = index
        return True

    def _fuse_factor(self, node: ir.Node, value: ir.Value) -> bool:
        """A positive number times a product of activations is a part of its requantisation."""
        index, factor = self.made.get(name_of(value)), positive_factor(node)
        if index is None or factor is None or len(value.uses()) != 1 or value.is_graph_output():
            return False
        unit = self.items[index]
        if not isinstance(unit, Unit) or unit.kind != "matmul" or unit.clamp != UNBOUNDED:
            return False
        output = name_of(node.outputs[0])
        nodes, total = (*unit.nodes, node), unit.factor * factor
        self.items[index] = replace(unit, outputs=(output,), nodes=nodes, factor=total)
        self.made[output] = index
        return True

    def _unit(self, node: ir.Node, kind: str) -> None:
        for value in operands(node):
            self.materialise(value)
        floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
        weight = bias = None
        nodes: tuple[ir.Node, ...] = (node,)
        if kind in ("conv", "gemm"):
            weight, floats = node.inputs[1], floats[:1]
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None and (extra := self._bias_add(node)) is not None:
                nodes, bias = (node, extra[0]), extra[1]
        elif kind not in ("matmul", "add", "multiply", "concat"):
            floats = floats[:1]
        outputs = tuple(v.name for v in nodes[-1].outputs if v.name)
        names = tuple(name_of(v) for v in floats)
        self._append(Unit(kind, str(node.name), names, outputs, nodes, weight, bias))

    def _compound(self, compound: Compound) -> None:
        self.materialise(compound.source)
        name, output = str(compound.nodes[-1].name), name_of(compound.nodes[-1].outputs[0])
        inputs = (name_of(compound.source),)
        self._append(
            Unit(compound.kind, name, inputs, (output,), compound.nodes, compound=compound)
        )

    def _bias_add(self, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
        """The Add of a constant row right after a MatMul that nobody else reads."""
        value = node.outputs[0]
        users = list(value.consumers())
        if node.op_type != "MatMul" or len(value.uses()) != 1 or value.is_graph_output():
            return None
        user = users[0]
        other = next((v for v in user.inputs if v is not value), None)
        array, weight = constant(other), constant(node.inputs[1])
        if user.op_type != "Add" or other is None or array is None or weight is None:
            return None
        if isinstance(self.kept[id(user)], Refusal) or array.size != weight.shape[1]:
            return None
        if array.ndim and array.shape[-1] != array.size:
            return None
        self.absorbed.add(id(user))
        return user, other


def positive_factor(node: ir.Node) -> float | None:
    """What a Mul or Div by a positive number multiplies with, else None."""
    arrays = [constant(v) for v in node.inputs]
    number = next((a for a in arrays if a is not None), None)
    divides = node.op_type == "Div" and arrays[1] is number
    if number is None or number.size != 1 or not (divides or node.op_type == "Mul"):
        return None
    value = float(number.reshape(()))
    factor = 1 / value if divides and value else value
    return factor if 0 < factor < float("inf") else None


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Bounds of a Relu or constant Clip, else None."""
    infinity = float("inf")
    if node.op_type == "Relu":
        return 0.0, infinity
    if node.op_type != "Clip":
        return None
    ends = [constant(v) for v in (*node.inputs[1:3], None, None)[:2]]
    low = -infinity if ends[0] is None else float(ends[0].reshape(-1)[0])
    high = infinity if ends[1] is None else float(ends[1].reshape(-1)[0])
    return low, high


def _varies(value: ir.Value | None) -> bool:
    return constant(value) is not None and channel_axis(value) != 0
