"""The checks on an untrusted model that run before anything else reads it.

Everything here reads the protobuf message only: no weight is loaded, no operator is run, nothing is
expanded. The cost is linear in the size of the message.

1. structure: nodes counted as if every function were inlined, no recursive function, subgraphs and
   types nested to a bounded depth (here);
2. tensors: dtypes, non-negative dims with checked products, sizes that match the data
   (tensor_checks.py);
3. external data: inside the model's own folder, within its file (external_data.py).

Numbers that are not finite are found later, by `ptq.finite`, because that has to read the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from ptq.errors import InvalidModelError, UnsafeModelError, UnsupportedModelError
from ptq.external_data import ExternalFiles
from ptq.tensor_checks import check_tensor, check_type

FunctionId = tuple[str, str, str]


@dataclass(frozen=True)
class SafetyLimits:
    """How large a model may be before it is refused as an attack.

    `nodes` counts every node after function expansion, `depth` counts nested subgraphs, function
    calls and container types, `elements` is the most that one tensor may hold.
    """

    nodes: int = 250_000
    depth: int = 24
    elements: int = 1 << 40


@dataclass(frozen=True)
class _Place:
    """A graph or a function body to be checked, and how deep in the model it lies."""

    nodes: Iterable[onnx.NodeProto]
    graph: onnx.GraphProto | None
    where: str
    depth: int


def check(
    model: onnx.ModelProto, folder: Path | None = None, limits: SafetyLimits | None = None
) -> Path | None:
    """Refuse a model that breaks the rules above; `folder` is where its file lies, if it has one.

    Returns the directory that external data is relative to: `folder`, or the blobs of a Hugging
    Face cache (the locations in `model` are rewritten to the blobs' names then).

    Raises:
        InvalidModelError, UnsafeModelError, UnsupportedModelError: what, where, and the remedy.
    """
    limits = limits or SafetyLimits()
    _check_header(model)
    _check_functions(model, limits)
    _check_readers(model.graph, limits)
    files = ExternalFiles(folder)
    count = 0
    for place in _places(model, limits):
        if place.graph is not None:
            _check_graph(place.graph, place.where, files, limits)
        for node in place.nodes:
            count += 1
            if count > limits.nodes:
                raise UnsafeModelError(
                    f"model: more than {limits.nodes} nodes. Refused, because no known network "
                    f"needs so many; split the model."
                )
            _check_node_tensors(node, place.where, files, limits)
    return files.bind()


def _check_header(model: onnx.ModelProto) -> None:
    versions = {e.domain: e.version for e in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if opset is None or opset < 1:
        raise InvalidModelError(
            f"model: opset_import has no version of the standard operators (got {versions}); "
            f"wanted 1 to {newest}. Export it again."
        )
    if opset > newest:
        raise UnsupportedModelError(
            f"model: opset {opset}; the installed onnx knows up to {newest}. "
            f"Upgrade onnx, or export with an older opset."
        )
    if not model.graph.output:
        raise InvalidModelError("graph: no outputs. Export it again, with an output.")


def _check_functions(model: onnx.ModelProto, limits: SafetyLimits) -> None:
    """Refuse recursion, and more nodes after inlining than the limit; nothing is inlined."""
    functions = {_function_id(f): f for f in model.functions}
    if len(functions) != len(model.functions):
        raise InvalidModelError("model: two functions have one name. Export it again.")
    calls = {key: _count_calls(f.node, limits) for key, f in functions.items()}
    sizes: dict[FunctionId, int] = {}
    for key in _callees_first(calls, limits):
        sizes[key] = _expanded_size(calls[key], sizes)
    total = _expanded_size(_count_calls(model.graph.node, limits), sizes)
    if total > limits.nodes:
        raise UnsafeModelError(
            f"model: {total} nodes after its functions are inlined; the limit is {limits.nodes}. "
            f"Refused as an expansion attack; export the model without functions."
        )


def _expanded_size(calls: Counter[FunctionId], sizes: dict[FunctionId, int]) -> int:
    return sum(times * sizes.get(callee, 1) for callee, times in calls.items())


def _callees_first(
    calls: dict[FunctionId, Counter[FunctionId]], limits: SafetyLimits
) -> Iterator[FunctionId]:
    """Every function after those that it calls; iterative, so depth costs no stack."""
    done: set[FunctionId] = set()
    for root in calls:
        path: list[FunctionId] = [root]
        while path:
            key = path[-1]
            waiting = [c for c in calls[key] if c in calls and c not in done]
            if key in done or not waiting:
                path.pop()
                if key not in done:
                    done.add(key)
                    yield key
                continue
            if waiting[0] in path:
                names = " -> ".join(name for _, name, _ in [*path, waiting[0]])
                raise UnsafeModelError(
                    f"function {waiting[0][1]}: calls itself ({names[:300]}). ONNX forbids "
                    f"recursion; export the model without functions."
                )
            if len(path) > limits.depth:
                raise UnsafeModelError(
                    f"function {root[1]}: calls nested more than {limits.depth} deep. "
                    f"Export the model without functions."
                )
            path.append(waiting[0])


def _function_id(function: onnx.FunctionProto) -> FunctionId:
    return (_domain(function.domain), function.name, function.overload)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _count_calls(nodes: Iterable[onnx.NodeProto], limits: SafetyLimits) -> Counter[FunctionId]:
    """How often each operator is used in `nodes` and in their subgraphs."""
    counts: Counter[FunctionId] = Counter()
    pending = [_Place(nodes, None, "", 0)]
    while pending:
        place = pending.pop()
        for node in place.nodes:
            counts[(_domain(node.domain), node.op_type, node.overload)] += 1
            pending.extend(_subgraphs(node, place, limits))
    return counts


def _places(model: onnx.ModelProto, limits: SafetyLimits) -> Iterator[_Place]:
    """The graph, the function bodies and every subgraph in them."""
    pending = [_Place(model.graph.node, model.graph, "graph", 0)]
    pending += [_Place(f.node, None, f"function {f.name}", 0) for f in model.functions]
    while pending:
        place = pending.pop()
        yield place
        for node in place.nodes:
            pending.extend(_subgraphs(node, place, limits))


def _subgraphs(node: onnx.NodeProto, place: _Place, limits: SafetyLimits) -> list[_Place]:
    graphs = [
        graph
        for attribute in node.attribute
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))
    ]
    if graphs and place.depth >= limits.depth:
        raise UnsafeModelError(
            f"{place.where}: subgraphs nested more than {limits.depth} deep. "
            f"Refused, because reading them would exhaust the stack; flatten the model."
        )
    where = f"{place.where}/{node.name or node.op_type}"[:200]
    return [_Place(graph.node, graph, where, place.depth + 1) for graph in graphs]


def _check_graph(
    graph: onnx.GraphProto, where: str, files: ExternalFiles, limits: SafetyLimits
) -> None:
    if graph.sparse_initializer:
        raise UnsupportedModelError(
            f"{where}: has sparse initializers. Export the model with dense weights."
        )
    names = Counter(tensor.name for tensor in graph.initializer)
    if names and (twice := names.most_common(1)[0])[1] > 1:
        raise InvalidModelError(f"{twice[0]}: initialized {twice[1]} times in {where}.")
    for tensor in graph.initializer:
        check_tensor(tensor, where, files, limits.elements)
    for info in (*graph.input, *graph.output, *graph.value_info):
        check_type(info.type, f"{where}: {info.name}", limits.elements, limits.depth)
    _check_makers(graph, where)


def _check_makers(graph: onnx.GraphProto, where: str) -> None:
    """Every value of a graph is made once."""
    defined = Counter(name for node in graph.node for name in node.output if name)
    defined.update(info.name for info in graph.input)
    if defined and (twice := defined.most_common(1)[0])[1] > 1:
        raise InvalidModelError(
            f"{twice[0]}: made {twice[1]} times in {where}; every value must have one maker. "
            f"Export the model again."
        )


def _check_readers(main: onnx.GraphProto, limits: SafetyLimits) -> None:
    """Every value that a node reads is made in its graph or in one around it."""
    pending = [(_Place(main.node, main, "graph", 0), [_made_in(main)])]
    while pending:
        place, visible = pending.pop()
        for node in place.nodes:
            for name in node.input:
                if name and not any(name in names for names in visible):
                    raise InvalidModelError(
                        f"{name}: read by {node.name or node.op_type} in {place.where}, but "
                        f"nothing makes it. Export the model again."
                    )
            for inner in _subgraphs(node, place, limits):
                if inner.graph is not None:
                    pending.append((inner, [*visible, _made_in(inner.graph)]))


def _made_in(graph: onnx.GraphProto) -> set[str]:
    names = {name for node in graph.node for name in node.output}
    names |= {tensor.name for tensor in graph.initializer}
    return names | {info.name for info in graph.input}


def _check_node_tensors(
    node: onnx.NodeProto, where: str, files: ExternalFiles, limits: SafetyLimits
) -> None:
    place = f"{where}: {node.name or node.op_type}"
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise UnsupportedModelError(f"{place}: has a sparse constant. Export it dense.")
        tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
        for tensor in tensors:
            check_tensor(tensor, place, files, limits.elements)
        types = [*attribute.type_protos, *([attribute.tp] if attribute.HasField("tp") else [])]
        for type_proto in types:
            check_type(type_proto, place, limits.elements, limits.depth)
