"""Types and shapes of an emitted node's outputs, where ONNX's own rules can tell them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

SMALL = 64  # elements of a constant that shape inference may read
FAILURES = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError)
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def infer_types(node: ir.Node, outputs: Sequence[ir.Value], opset: int) -> None:
    """Set type and shape of `outputs` from what `node` produces; what is unknown stays unset."""
    for output, found in zip(outputs, _infer(node, opset, None), strict=False):
        output.type = ir.serde.deserialize_type_proto_for_type(found)
        output.shape = ir.serde.deserialize_type_proto_for_shape(found)


def infer_like(
    op_type: str, operands: Sequence[ir.Value], output: ir.Value, opset: int, dtype: ir.DataType
) -> None:
    """Make `output` of this type, and of the shape that a float `op_type` would have."""
    output.type = ir.TensorType(dtype)
    for found in _infer(ir.node(op_type, operands), opset, FLOAT):
        output.shape = ir.serde.deserialize_type_proto_for_shape(found)


def _infer(node: ir.Node, opset: int, dtype: ir.TypeProtocol | None) -> list[onnx.TypeProto]:
    """The outputs' types, or nothing if they cannot be told; dtype: of all operands instead."""
    if node.domain or not onnx.defs.has(node.op_type):
        return []
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.type is None:
            return []
        types[str(value.name)] = _type_proto(value, dtype or value.type)
        tensor = value.const_value
        if tensor is not None and tensor.size <= SMALL and tensor.dtype == ir.DataType.INT64:
            data[str(value.name)] = onnx.numpy_helper.from_array(np.asarray(tensor.numpy()))
    proto = ir.to_proto(node)
    names = [f"{i}" for i in range(len(node.outputs))]
    del proto.output[:]
    proto.output.extend(names)
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    opsets = [onnx.helper.make_opsetid("", opset)]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=opsets
        )
    except FAILURES:
        return []
    known = [found.get(name, onnx.TypeProto()) for name in names]
    return known if all(proto.HasField("tensor_type") for proto in known) else []


def _type_proto(value: ir.Value, dtype: ir.TypeProtocol) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    ir.serde.serialize_type_into(proto, dtype)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto, value.shape)
    return proto
