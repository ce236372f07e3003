"""A unit's own numbers: its float weight, bias and table, as the integer program needs them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.integer.claims import channel_axis, constant, integer, rank, real
from ptq.integer.pairs import Pairs, convolution_pairs
from ptq.integer.units import Unit


def unit_weight(unit: Unit) -> npt.NDArray[np.float32]:
    """The weight as the arithmetic uses it (Gemm's alpha multiplied in), in its own layout."""
    array = constant(unit.weight)
    if array is None:
        raise ValueError(f"{unit.name} has no weight")
    alpha = real(unit.node, "alpha", 1.0) if unit.node.op_type == "Gemm" else 1.0
    return np.asarray(array, np.float32) * np.float32(alpha)


def weight_key(unit: Unit) -> tuple[object, ...]:
    """Equal for units that multiply equal weights in the same way."""
    weight = unit_weight(unit)
    digest = hashlib.blake2b(weight.tobytes()).digest()
    group = integer(unit.node, "group", 1) if unit.kind == "conv" else 1
    return digest, weight.shape, unit_axis(unit), unit.kind, group


def unit_axis(unit: Unit) -> int:
    """The output-channel axis of the unit's weight."""
    if unit.node.op_type == "MatMul":
        return 1
    return 1 if unit.node.op_type == "Gemm" and not integer(unit.node, "transB", 0) else 0


def unit_pairs(unit: Unit, top: int) -> Pairs | None:
    """The weights of a channel that a CPU may add in 16 bits, None if none; top: as for Pairs."""
    shape = np.moveaxis(unit_weight(unit), unit_axis(unit), 0).shape
    if unit.kind != "conv":
        return Pairs.of(shape[1:], top)
    return convolution_pairs(shape, integer(unit.node, "group", 1), top)


def unit_bias(unit: Unit) -> npt.NDArray[np.float64]:
    """The bias, [channels] float64; zeros where the model has none."""
    channels = unit_weight(unit).shape[unit_axis(unit)]
    array = constant(unit.bias)
    if array is None:
        return np.zeros(channels)
    beta = real(unit.node, "beta", 1.0) if unit.node.op_type == "Gemm" else 1.0
    return np.broadcast_to(array.astype(np.float64).reshape(-1) * beta, (channels,)).copy()


def table_axis(unit: Unit) -> int:
    """The axis, from the end, along which a table's constants vary; 0 if they do not."""
    axes = {
        channel_axis(v)
        for node in unit.nodes
        for v in node.inputs
        if v is not None and v.const_value is not None
    }
    return next((a for a in axes if a), 0)


def evaluate_table(
    unit: Unit, x: npt.NDArray[np.float32], opsets: dict[str, int]
) -> npt.NDArray[np.float32]:
    """What the unit's float nodes compute at the values x: [n] -> [n] or [channels, n] float32."""
    import onnx
    import onnxruntime as ort

    axis, root = table_axis(unit), unit.inputs[0]
    channels = 1
    operands = {v.name: v for n in unit.nodes for v in n.inputs if v is not None}
    if axis:
        sizes = [constant(v) for v in operands.values() if channel_axis(v) == axis]
        channels = max(a.shape[axis] for a in sizes if a is not None)
    dims = [1] * max(rank(operands.get(root)) or 1, 1)
    dims[0] = len(x)
    feed = x.reshape(dims)
    if axis:
        dims[axis] = channels
        feed = np.broadcast_to(feed, dims).copy()
    initializers = []
    for value in operands.values():
        if value.const_value is not None:
            array = value.const_value.numpy()  # a proto might only name a file
            initializers.append(ir.to_proto(ir.tensor(array, name=value.name)))
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in unit.nodes],
        "table",
        [onnx.helper.make_tensor_value_info(root, onnx.TensorProto.FLOAT, dims)],
        [onnx.helper.make_empty_tensor_value_info(unit.output)],
        initializers,
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    out: npt.NDArray[Any] = np.asarray(session.run(None, {root: feed})[0], np.float32)
    if not axis:
        return out.reshape(len(x))
    return np.moveaxis(out, axis, 0).reshape(channels, len(x))
