"""Outline: which float nodes become which integer step, before any number is known.

1. Every node is claimed by a rule of `claims` or refused with a reason (a float island).
2. Nodes that only move or map data between islands stay in the island.
3. Elementwise nodes of one source tensor melt into one 256-entry table; a Relu or Clip after an
   arithmetic step becomes that step's saturation; a bias Add joins its MatMul.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from ptq.errors import RecipeError, UnsupportedModelError
from ptq.integer import claims
from ptq.integer.claims import Claim, Refusal, channel_axis, constant, is_activation
from ptq.recipe import Recipe

ARITHMETIC = ("conv", "gemm", "matmul", "add", "multiply", "mean", "window")
MULTIPLIES = ("conv", "gemm", "matmul")
FREE = ("move", "concat", "elementwise", "shape")


@dataclass(frozen=True)
class Unit:
    """One integer step to be, covering `nodes` of the float graph.

    inputs: activations (or constant operands) read as codes; outputs: written as codes, except
    by 'order' (ArgMax), which writes integers.
    clamp: bounds of a fused Relu or Clip.
    edge: the first or last multiplication on a path through the graph.
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


def outline(model: ir.Model, recipe: Recipe) -> Outline:
    """Decide what becomes integer.

    Raises:
        UnsupportedModelError: `recipe.strict` and something would stay float.
        RecipeError: an include or exclude pattern that matches nothing.
    """
    nodes = list(model.graph)
    kept = _claim_all(nodes, recipe)
    _leave_islands_whole(nodes, kept)
    builder = _Builder(kept, {v.name for v in model.graph.outputs if v.name})
    for node in nodes:
        builder.add(node)
    for value in model.graph.outputs:
        builder.materialise(value)
    items = tuple(_mark_edges(builder.items, model))
    islands = [i for i in items if isinstance(i, Island) and i.reason is not None]
    if recipe.strict and islands:
        listed = "; ".join(f"{i.name} ({i.op_type}): {i.reason}" for i in islands[:8])
        raise UnsupportedModelError(
            f"{len(islands)} nodes would stay float: {listed}. Drop --strict to keep them as float "
            "islands, or change the model"
        )
    return _place_sites(items, model, recipe)


def _claim_all(nodes: list[ir.Node], recipe: Recipe) -> dict[int, Claim]:
    """A claim for every node; 'raw' where no float tensor is involved."""
    chosen = _selection(nodes, recipe)
    kept: dict[int, Claim] = {}
    for node in nodes:
        reads = [v for v in node.inputs if is_activation(v)]
        writes_float = any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
        rule = claims.RULES.get(node.op_type)
        if not reads and not writes_float and not _has_body(node):
            kept[id(node)] = "raw"
        elif rule is not None and reads and node.domain in ("", "ai.onnx", "com.microsoft"):
            kept[id(node)] = rule(node)
        else:
            kept[id(node)] = Refusal("this operator has no integer form in ptq")
        if id(node) in chosen and kept[id(node)] not in ("raw", "shape"):
            kept[id(node)] = Refusal(chosen[id(node)])
    return kept


def _has_body(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attr.type in graphs for attr in node.attributes.values())


def _selection(nodes: list[ir.Node], recipe: Recipe) -> dict[int, str]:
    """Nodes that include/exclude keep in float, with the reason."""
    out: dict[int, str] = {}
    included = _matching(nodes, recipe.include, "--include")
    if recipe.include:
        out |= {id(n): "not in --include" for n in nodes if id(n) not in included}
    excluded = _matching(nodes, recipe.exclude, "--exclude")
    return out | dict.fromkeys(excluded, "excluded by the user")


def _matching(nodes: list[ir.Node], patterns: Iterable[str], option: str) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        hits = {id(n) for n in nodes if _matches(pattern, n)}
        if not hits:
            names = ", ".join(str(n.name) for n in nodes[:4])
            raise RecipeError(
                f"{option} {pattern!r} matches no node name or op type; names are like {names}"
            )
        found |= hits
    return found


def _matches(pattern: str, node: ir.Node) -> bool:
    words = (node.name or "", node.op_type)
    if pattern.startswith("re:"):
        return any(re.search(pattern[3:], word) for word in words)
    return any(fnmatch.fnmatchcase(word, pattern) for word in words)


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


@dataclass(frozen=True)
class _Region:
    """Elementwise nodes that compute one tensor from one root."""

    root: ir.Value
    nodes: tuple[ir.Node, ...]


class _Builder:
    """Walks the nodes in order and collects units; tables are made when somebody needs them."""

    def __init__(self, kept: dict[int, Claim], outputs: set[str]) -> None:
        self.kept = kept
        self.outputs = outputs
        self.items: list[Unit | Island] = []
        self.regions: dict[str, _Region] = {}
        self.made: dict[str, int] = {}  # tensor name -> index of the unit that writes it
        self.absorbed: set[int] = set()

    def add(self, node: ir.Node) -> None:
        """Turn one node into a unit, an island, or a part of a table."""
        claim = self.kept[id(node)]
        if id(node) in self.absorbed:
            return
        if claim == "raw" or isinstance(claim, Refusal):
            reason = claim.reason if isinstance(claim, Refusal) else None
            self._island(node, reason)
        elif claim == "shape":
            self._island(node, None)
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
                (_name(region.root),),
                (value.name,),
                region.nodes,
            )
        )

    def _append(self, unit: Unit) -> None:
        for output in unit.outputs:
            self.made[output] = len(self.items)
        self.items.append(unit)

    def _island(self, node: ir.Node, reason: str | None) -> None:
        for value in _reads(node):
            self.materialise(value)
        self.items.append(Island(str(node.name), node.op_type, node, reason))

    def _root(self, value: ir.Value) -> _Region:
        return self.regions.get(_name(value), _Region(value, ()))

    def _same_root(self, node: ir.Node) -> bool:
        """Both operands are functions of one tensor: x * sigmoid(x)."""
        sources = [v for v in node.inputs if v is not None]
        if not all(is_activation(v) for v in sources):
            return False
        roots = {id(self._root(v).root) for v in sources}
        return len(roots) == 1 and any(self._root(v).nodes for v in sources)

    def _elementwise(self, node: ir.Node) -> None:
        value = next(v for v in node.inputs if v is not None and is_activation(v))
        if self._fuse_clamp(node, value):
            return
        parts = [self._root(v) for v in node.inputs if v is not None and is_activation(v)]
        nodes = list(dict.fromkeys(n for part in parts for n in part.nodes))
        region = _Region(parts[0].root, (*nodes, node))
        if len({channel_axis(v) for n in region.nodes for v in n.inputs if _varies(v)}) > 1:
            self.materialise(value)
            region = _Region(value, (node,))
        self.regions[_name(node.outputs[0])] = region

    def _fuse_clamp(self, node: ir.Node, value: ir.Value) -> bool:
        """A Relu or Clip after an arithmetic unit that nobody else reads is its saturation."""
        index = self.made.get(_name(value))
        bounds = clamp_bounds(node)
        if index is None or bounds is None or len(value.uses()) != 1 or value.is_graph_output():
            return False
        unit = self.items[index]
        if not isinstance(unit, Unit) or unit.kind not in ARITHMETIC:
            return False
        low, high = max(unit.clamp[0], bounds[0]), min(unit.clamp[1], bounds[1])
        output = _name(node.outputs[0])
        self.items[index] = replace(
            unit, outputs=(output,), nodes=(*unit.nodes, node), clamp=(low, high)
        )
        self.made[output] = index
        return True

    def _unit(self, node: ir.Node, kind: str) -> None:
        for value in _reads(node):
            self.materialise(value)
        operands = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
        weight = bias = None
        nodes: tuple[ir.Node, ...] = (node,)
        if kind in ("conv", "gemm"):
            weight, operands = node.inputs[1], operands[:1]
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None and (extra := self._bias_add(node)) is not None:
                nodes, bias = (node, extra[0]), extra[1]
        elif kind not in ("matmul", "add", "multiply", "concat"):
            operands = operands[:1]
        outputs = tuple(v.name for v in nodes[-1].outputs if v.name)
        names = tuple(_name(v) for v in operands)
        self._append(Unit(kind, str(node.name), names, outputs, nodes, weight, bias))

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


def _name(value: ir.Value) -> str:
    return str(value.name)


def _varies(value: ir.Value | None) -> bool:
    return value is not None and not is_activation(value) and channel_axis(value) != 0


def _reads(node: ir.Node) -> list[ir.Value]:
    """Operands, and outer values that the node's bodies capture."""
    found = [v for v in node.inputs if v is not None]
    for attr in node.attributes.values():
        graphs = [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else []
        for graph in graphs:
            inner = list(ir.traversal.RecursiveGraphIterator(graph))
            found += [v for n in inner for v in n.inputs if v is not None]
            found += list(graph.outputs)
    return found


def _mark_edges(items: list[Unit | Island], model: ir.Model) -> list[Unit | Island]:
    """Mark the first and the last multiplications of every path."""
    first = _reach(items, [_name(v) for v in model.graph.inputs])
    backwards = [
        replace(i, inputs=i.outputs, outputs=i.inputs) if isinstance(i, Unit) else i
        for i in reversed(items)
    ]
    last = _reach(backwards, [_name(v) for v in model.graph.outputs], backward=True)
    edge = first | last
    return [
        replace(i, edge=True) if isinstance(i, Unit) and i.name in edge and i.weight else i
        for i in items
    ]


def _reach(items: Iterable[Unit | Island], start: list[str], backward: bool = False) -> set[str]:
    """Weighted units reachable from `start` without passing through another one."""
    front, found = set(start), set()
    for item in items:
        if isinstance(item, Unit):
            inputs, outputs = item.inputs, item.outputs
        else:
            inputs = tuple(_name(v) for v in item.node.inputs if v is not None)
            outputs = tuple(_name(v) for v in item.node.outputs)
            inputs, outputs = (outputs, inputs) if backward else (inputs, outputs)
        if front.isdisjoint(inputs):
            continue
        if isinstance(item, Unit) and item.weight is not None:
            found.add(item.name)
        else:
            front |= set(outputs)
    return found


def _place_sites(items: tuple[Unit | Island, ...], model: ir.Model, recipe: Recipe) -> Outline:
    """Find the tensors that need a grid, and the width of each."""
    units = [i for i in items if isinstance(i, Unit)]
    aliases: dict[str, str] = {}
    sources: dict[str, str] = {}
    limits: dict[str, tuple[float, float]] = {}
    fixed: set[str] = set()
    constants: dict[str, ir.Value] = {}
    graph_inputs = {_name(v) for v in model.graph.inputs}
    written = {name for unit in units for name in unit.outputs}
    for unit in units:
        for value in unit.node.inputs:
            if value is not None and value.name in unit.inputs and not is_activation(value):
                constants[_name(value)] = value
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
    unbounded = (-float("inf"), float("inf"))
    sites = {
        name: Site(
            name,
            (recipe.edge_bits or recipe.activation_bits) if source == "input"
            else 8 if name in fixed else bits.get(name, 8),
            limits.get(name, unbounded), source, name in fixed,
        )
        for name, source in sources.items()
    }  # fmt: skip
    return Outline(items, sites, aliases, constants)


def _widths(units: list[Unit], aliases: Mapping[str, str], recipe: Recipe) -> dict[str, int]:
    """Code widths: operands of multiplications as the recipe says, everything else 8 bits.

    Tensors that are only added or mapped keep the full container: narrowing them would cost
    accuracy and save nothing.
    """
    bits: dict[str, int] = {}
    for unit in units:
        if unit.kind not in MULTIPLIES:
            continue
        edge_bits = recipe.edge_bits or recipe.activation_bits
        wanted = edge_bits if unit.edge else recipe.activation_bits
        for name in unit.inputs:
            site = aliases.get(name, name)
            bits[site] = min(bits.get(site, 8), wanted)
    return bits
