"""Simplify, convert and infer shapes in a child process; the weights stay at home.

onnx-simplifier, the version converter and shape inference read a copy of the graph in which every
large constant is a graph input. So a 3 GiB model crosses as a few kilobytes, no weight can change
on the way, and a hang or a crash costs a warning instead of the run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ptq.errors import InvalidModelError, UnsupportedModelError
from ptq.passes import simplify_child as child
from ptq.sandbox import Limits, Outcome, call

DETACH_ABOVE_BYTES = 4096
"""Constants larger than this stay in the parent: too large to be a shape, an axis or a bound."""


class PreparationWarning(UserWarning):
    """An optional step of the preparation was left out."""


FIRST_IR_VERSION = 10
"""The first with INT4. Before version 4, every initializer had to be an input as well."""


@dataclass(frozen=True)
class Detached:
    """A graph without its large constants, and the constants by name."""

    proto: onnx.ModelProto
    weights: dict[str, ir.TensorProtocol]


def simplify(model: ir.Model, limits: Limits | None = None) -> ir.Model:
    """A new model, simplified, at opset 21 or above, with shapes; dynamic dims stay dynamic.

    Raises:
        InvalidModelError: onnx's checker refuses the model.
        UnsupportedModelError: the model cannot be brought to opset 21.
    """
    detached = detach_weights(model)
    payload = detached.proto.SerializeToString()
    outcome = call(child.run_simplifier, payload, limits)
    _raise_if_refused(outcome)
    reason = outcome.failure
    if outcome.output is not None:
        simplified = onnx.load_model_from_string(outcome.output)
        reason = _why_not(detached.proto, simplified)
        if not reason:
            return attach_weights(simplified, detached.weights)
    warnings.warn(
        f"onnx-simplifier left out: it {reason}. The model is used as it is.",
        PreparationWarning,
        stacklevel=2,
    )
    return attach_weights(_convert(payload, limits), detached.weights)


def infer_shapes(model: ir.Model, limits: Limits | None = None) -> None:
    """Fill in missing shapes and types of `model`, in place; a failure leaves them missing."""
    detached = detach_weights(model)
    payload = detached.proto.SerializeToString()
    for job in (child.run_shape_inference_with_data, child.run_shape_inference):
        outcome = call(job, payload, limits)
        if outcome.output is not None:
            _copy_shapes(onnx.load_model_from_string(outcome.output), model.graph)
            return
    warnings.warn(
        f"shape inference left out: it {outcome.failure}. Some layers may stay float.",
        PreparationWarning,
        stacklevel=2,
    )


def detach_weights(model: ir.Model) -> Detached:
    """Turn every constant above DETACH_ABOVE_BYTES into a graph input of a copy."""
    slim = model.clone()
    slim.ir_version = max(slim.ir_version, FIRST_IR_VERSION)
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(slim.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        if tensor.nbytes > DETACH_ABOVE_BYTES and not value.is_graph_output():
            weights[name] = tensor
            del slim.graph.initializers[name]
            value.const_value = None
            slim.graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(np.array(tensor.numpy()), tensor.dtype, name=name)
    return Detached(ir.to_proto(slim), weights)


def attach_weights(proto: onnx.ModelProto, weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """Undo `detach_weights` on what came back; weights that nothing reads any more are dropped."""
    model = ir.from_proto(proto)
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        if value.name is not None and value.uses():
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    return model


def _raise_if_refused(outcome: Outcome) -> None:
    """onnx's checker speaks in the child; its verdict is about the model, not about the child."""
    _, refused, verdict = outcome.failure.partition(child.CHECK_FAILED)
    if refused:
        raise InvalidModelError(
            f"model: breaks ONNX's rules: {' '.join(verdict.split())[:500]}. Export it again."
        )


def _convert(payload: bytes, limits: Limits | None) -> onnx.ModelProto:
    outcome = call(child.run_converter, payload, limits)
    if outcome.output is None:
        raise UnsupportedModelError(
            f"model: cannot be converted to opset {child.TARGET_OPSET}: the converter "
            f"{outcome.failure}. Export the model again with opset {child.TARGET_OPSET} or newer."
        )
    return onnx.load_model_from_string(outcome.output)


def _why_not(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """Why the simplifier's answer cannot be used, or an empty string."""
    outputs = [value.name for value in before.graph.output]
    if [value.name for value in after.graph.output] != outputs:
        return "changed the model's outputs"
    known = {value.name for value in before.graph.input}
    names = {value.name for value in after.graph.input}
    if not names <= known:
        return "added inputs"
    domains = {entry.domain for entry in before.opset_import} | {"", "ai.onnx"}
    if not {node.domain for node in after.graph.node} <= domains:
        return "used operators that are not in the standard"
    return ""


def _copy_shapes(proto: onnx.ModelProto, graph: ir.Graph) -> None:
    inferred = {
        info.name: ir.serde.deserialize_value_info_proto(info, None)
        for info in (*proto.graph.value_info, *proto.graph.output)
    }
    for value in (output for node in graph for output in node.outputs):
        found = inferred.get(value.name or "")
        if found is None:
            continue
        if found.shape is not None and not _is_better(value.shape, found.shape):
            value.shape = found.shape
        value.type = value.type or found.type


def _is_better(old: ir.Shape | None, new: ir.Shape) -> bool:
    """True when `old` knows more dimensions than `new`."""
    if old is None:
        return False
    known = [sum(isinstance(d, int) for d in shape) for shape in (old, new)]
    return len(old) == len(new) and known[0] > known[1]
