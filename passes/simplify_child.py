"""What runs in the sandboxed child process: bytes of a model in, bytes of a model out.

The models here carry no large constant; see simplify.py.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np
import onnx

TARGET_OPSET = 21
"""The first opset with INT4; older models are converted up to it."""

CHECK_FAILED = "onnx.checker: "

_NAMING_ROUNDS = 8


def run_simplifier(payload: bytes) -> bytes:
    """Check, convert up, simplify, infer shapes. Batch norm is left to our own fold."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # optional there, and slow to import
    onnxsim = importlib.import_module("onnxsim")
    model = _converted(_checked(payload))
    simplified, _ = onnxsim.simplify(model, check_n=0, skip_fuse_bn=True, certify=False)
    del simplified.metadata_props[:]
    simplified.metadata_props.extend(model.metadata_props)
    return _bytes(_inferred(simplified, data_prop=True))


def run_converter(payload: bytes) -> bytes:
    """Check, convert up to TARGET_OPSET and infer shapes without data propagation."""
    return _bytes(_inferred(_converted(_checked(payload)), data_prop=False))


def run_shape_inference_with_data(payload: bytes) -> bytes:
    """Shape inference that also computes small integer tensors (Shape, Concat, ...)."""
    return _bytes(_inferred(onnx.load_model_from_string(payload), data_prop=True))


def run_shape_inference(payload: bytes) -> bytes:
    """Plain shape inference."""
    return _bytes(_inferred(onnx.load_model_from_string(payload), data_prop=False))


def _checked(payload: bytes) -> onnx.ModelProto:
    """The model, after onnx's own checker; its message starts with CHECK_FAILED when it refuses."""
    model = onnx.load_model_from_string(payload)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{CHECK_FAILED}{error}") from error
    return model


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString()
    return data


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version_converter = importlib.import_module("onnx.version_converter")
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset >= TARGET_OPSET:
        return model
    converted: onnx.ModelProto = version_converter.convert_version(model, TARGET_OPSET)
    return converted


def _inferred(model: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto:
    """Shapes inferred afresh, and a dynamic batch that keeps its name through Pad.

    onnx's Pad rule gives an unpadded symbolic dimension a new name, and every Add after it another
    one. So: infer, correct the Pads, forget the rest, infer again, until nothing is corrected.
    """
    corrected: dict[str, onnx.ValueInfoProto] = {}
    for _ in range(_NAMING_ROUNDS):
        del model.graph.value_info[:]
        model.graph.value_info.extend(corrected.values())
        model = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
        found = _corrected_pads(model.graph, corrected)
        if not found:
            break
        corrected.update(found)
    return model


def _corrected_pads(
    graph: onnx.GraphProto, done: dict[str, onnx.ValueInfoProto]
) -> dict[str, onnx.ValueInfoProto]:
    infos = {info.name: info for info in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, onnx.ValueInfoProto] = {}
    for node in graph.node:
        if node.op_type != "Pad" or len(node.input) > 3 or node.output[0] in done:
            continue
        source, output = infos.get(node.input[0]), infos.get(node.output[0])
        pads = constants.get(node.input[1])
        if source is None or output is None or pads is None:
            continue
        corrected = _with_names(source, output, onnx.numpy_helper.to_array(pads).reshape(2, -1))
        if corrected is not None:
            found[node.output[0]] = corrected
    return found


def _with_names(
    source: onnx.ValueInfoProto, output: onnx.ValueInfoProto, pads: np.ndarray
) -> onnx.ValueInfoProto | None:
    """`output` with the dimension names of `source` where `pads` ([2, rank]) adds nothing."""
    before, corrected = source.type.tensor_type.shape.dim, onnx.ValueInfoProto()
    corrected.CopyFrom(output)
    after, changed = corrected.type.tensor_type.shape.dim, False
    if not len(before) == len(after) == pads.shape[1]:
        return None
    for old, new, (begin, end) in zip(before, after, pads.T, strict=True):
        if begin == end == 0 and old.dim_param and old.dim_param != new.dim_param:
            new.dim_param = old.dim_param
            changed = True
    return corrected if changed else None
