"""What onnxruntime really runs: its optimised graph, dumped and counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from ptq.errors import InvalidModelError

BOUNDARY = ("QuantizeLinear", "DequantizeLinear")
QUANTIZED = ("QLinear", "QGemm", "QuantizeLinear")
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


@dataclass(frozen=True)
class RuntimeGraph:
    """The operators that run, after every optimisation that happens at load.

    operators: {op_type: count}, vendor operators as 'domain.op_type'.
    float_ops: 'op_type: node name' of every node that writes a float tensor, apart from the
        Quantize/DequantizeLinear at the boundary.
    weight_bytes: {element type: bytes} of the initialisers that stay in memory.
    """

    operators: dict[str, int]
    float_ops: list[str]
    weight_bytes: dict[str, int]


def runtime_graph(model: bytes | str | Path) -> RuntimeGraph:
    """Load `model` in onnxruntime on the CPU and read the graph that it will run.

    Raises:
        InvalidModelError: onnxruntime does not load it.
    """
    graph = _optimised(model).graph
    nodes = list(_nodes(graph))
    types = _element_types(graph)
    floats = [
        f"{node.op_type}: {node.name}"
        for node in nodes
        if any(types.get(name) in FLOATS for name in node.output) and not _at_boundary(node, graph)
    ]
    sizes: Counter[str] = Counter()
    for tensor in graph.initializer:
        sizes[onnx.TensorProto.DataType.Name(tensor.data_type)] += _size_bytes(tensor)
    return RuntimeGraph(dict(Counter(map(_title, nodes))), floats, dict(sizes))


def float_ops(model: bytes | str | Path) -> list[str]:
    """Nodes that compute in float when onnxruntime runs `model`, as 'op_type: node name'.

    Raises:
        InvalidModelError: onnxruntime does not load it.
    """
    return runtime_graph(model).float_ops


def _optimised(model: bytes | str | Path) -> onnx.ModelProto:
    import onnxruntime as ort

    source = str(model) if isinstance(model, Path) else model
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, all of Exception
            where = "model bytes" if isinstance(source, bytes) else source
            raise InvalidModelError(f"{where}: onnxruntime does not load it ({error})") from error
        # Its weights, if they are in other files, are still named as beside `model`.
        return onnx.load(options.optimized_model_filepath, load_external_data=False)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                yield from _nodes(body)


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Element type by value name. Layout changes leave values untyped: those are told from the
    operator, and count as float if that does not say."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                types |= _element_types(body)
        for name in node.output:
            types.setdefault(name, _guess_type(node, types))
    return types


def _guess_type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    if node.op_type.startswith(QUANTIZED):
        return onnx.TensorProto.UINT8
    names = _like_output(node) if onnx.defs.has(node.op_type) else list(node.input)
    operands = [types.get(name, onnx.TensorProto.FLOAT) for name in names if name]
    return next((t for t in operands if t in FLOATS), onnx.TensorProto.UINT8)


def _like_output(node: onnx.NodeProto) -> list[str]:
    """The inputs that have the first output's type by definition, or all if there are none."""
    schema = onnx.defs.get_schema(node.op_type)
    wanted = schema.outputs[0].type_str
    pairs = zip(node.input, schema.inputs, strict=False)
    return [name for name, formal in pairs if formal.type_str == wanted] or list(node.input)


def _at_boundary(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    outputs = {value.name for value in graph.output}
    return node.op_type in BOUNDARY and not outputs.isdisjoint(node.output)


def _size_bytes(tensor: onnx.TensorProto) -> int:
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    count = 1
    for size in tensor.dims:
        count *= size
    if name in ("INT4", "UINT4", "INT2", "UINT2"):
        return (count * int(name[-1]) + 7) // 8
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _title(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
