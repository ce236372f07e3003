"""What runs in the sandboxed child process: bytes of a model in, bytes of a model out.

The models here carry no large constant; see simplify.py.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import onnx

Constants = dict[str, onnx.TensorProto]

TARGET_OPSET = 21
"""The first opset with INT4; older models are converted up to it."""

SKIPPED_OPTIMIZERS = (
    "fuse_bn_into_conv",  # our own fold is in float64
    "fuse_matmul_add_bias_into_gemm",  # fuse_gemm.py does it, with the weight at hand
    "fuse_matmul_add_bias_into_gemm_batched",  # writes rank 3 as Reshape, Gemm, Reshape
    "fuse_pad_into_pool",  # pads as large as the kernel too, which onnxruntime does not load
    "fuse_qkv",  # makes one layer of three, so that none of their names is left
)

CHECK_FAILED = "onnx.checker: "

_NO_SHAPE = "Field 'shape' of 'type' is required but missing"
_NAMING_ROUNDS = 8
_FIRST_OPSET_WITH_COORDINATES = 11
_COORDINATES = "coordinate_transformation_mode"
_STANDARD = ("", "ai.onnx")


def run_simplifier(payload: bytes) -> bytes:
    """Check, convert up, simplify, infer shapes."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # optional there, and slow to import
    onnxsim = importlib.import_module("onnxsim")
    model = _converted(_checked(payload))
    simplified, _ = onnxsim.simplify(
        model, check_n=0, certify=False, skipped_optimizers=list(SKIPPED_OPTIMIZERS)
    )
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
    if not all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        model = onnx.shape_inference.infer_shapes(model)  # the simplifier insists on shapes
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        if _NO_SHAPE not in str(error):  # an output of unknown rank: every runtime takes it
            raise ValueError(f"{CHECK_FAILED}{error}") from error
    return model


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString()
    return data


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version_converter = importlib.import_module("onnx.version_converter")
    opset = max((e.version for e in model.opset_import if e.domain in _STANDARD), default=0)
    if opset >= TARGET_OPSET:
        return model
    converted: onnx.ModelProto = version_converter.convert_version(model, TARGET_OPSET)
    if opset < _FIRST_OPSET_WITH_COORDINATES:
        _restore_old_resize(converted.graph)
    return converted


def _restore_old_resize(graph: onnx.GraphProto) -> None:
    """Say what Upsample and the first Resize meant; onnx's converter leaves the new defaults.

    They had no coordinate mode: they are asymmetric, and nearest rounds down, or up when shrinking,
    as onnxruntime computes them.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    for node in graph.node:
        if node.op_type != "Resize" or any(a.name == _COORDINATES for a in node.attribute):
            continue
        scales = constants.get(node.input[2]) if len(node.input) > 2 else None
        shrinks = scales is not None and bool((onnx.numpy_helper.to_array(scales) < 1).any())
        node.attribute.append(onnx.helper.make_attribute(_COORDINATES, "asymmetric"))
        rounding = onnx.helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor")
        node.attribute.append(rounding)


def _inferred(model: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto:
    """Shapes inferred afresh, and a dynamic batch that keeps its name through Pad and Resize.

    onnx's rules for these give an untouched symbolic dimension a new name, and every Add after it
    another one. So: infer, correct their outputs, forget the rest, infer again, until nothing is
    corrected.
    """
    declared = {info.name: info for info in model.graph.value_info if _has_shape(info)}
    corrected: dict[str, onnx.ValueInfoProto] = {}
    for _ in range(_NAMING_ROUNDS):
        del model.graph.value_info[:]
        model.graph.value_info.extend(corrected.values())
        model = onnx.shape_inference.infer_shapes(model, data_prop=data_prop)
        found = _corrections(model.graph, corrected) | _not_inferred(model.graph, declared)
        if not found:
            break
        corrected.update(found)
    return model


def _has_shape(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.HasField("shape"))


def _not_inferred(
    graph: onnx.GraphProto, declared: dict[str, onnx.ValueInfoProto]
) -> dict[str, onnx.ValueInfoProto]:
    """What the exporter declared of the results of operators whose shapes onnx does not infer.

    Nobody can infer those of a custom operator, and onnx has no rule for some of its own.
    """
    known = {info.name for info in (*graph.input, *graph.value_info) if _has_shape(info)}
    known |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.output}
    missing = [
        (node, [n for n in node.output if n not in known and n in declared]) for node in graph.node
    ]
    without_rule = {
        (node.domain, node.op_type)
        for node, names in missing
        if names and all(name in known for name in node.input if name)
    }
    return {
        name: declared[name]
        for node, names in missing
        if (node.domain, node.op_type) in without_rule
        for name in names
    }


def _corrections(
    graph: onnx.GraphProto, done: dict[str, onnx.ValueInfoProto]
) -> dict[str, onnx.ValueInfoProto]:
    infos = {info.name: info for info in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, onnx.ValueInfoProto] = {}
    for node in graph.node:
        rule = _UNTOUCHED.get(node.op_type)
        if rule is None or node.domain not in _STANDARD or node.output[0] in done:
            continue
        source, output = infos.get(node.input[0]), infos.get(node.output[0])
        untouched = rule(node, constants)
        if source is None or output is None or untouched is None:
            continue
        corrected = _with_names(source, output, untouched)
        if corrected is not None:
            found[node.output[0]] = corrected
    return found


def _unpadded(node: onnx.NodeProto, constants: Constants) -> list[bool] | None:
    """Pad: the dimensions without pads, when all pads are given in one constant."""
    pads = constants.get(node.input[1]) if len(node.input) < 4 else None
    if pads is None:
        return None
    begins, ends = onnx.numpy_helper.to_array(pads).reshape(2, -1)
    return [bool(begin == end == 0) for begin, end in zip(begins, ends, strict=True)]


def _unscaled(node: onnx.NodeProto, constants: Constants) -> list[bool] | None:
    """Resize: the dimensions with scale 1."""
    scales = constants.get(node.input[2]) if len(node.input) == 3 else None
    if scales is None or any(attribute.name == "axes" for attribute in node.attribute):
        return None
    return [bool(scale == 1) for scale in onnx.numpy_helper.to_array(scales).reshape(-1)]


_UNTOUCHED: dict[str, Callable[[onnx.NodeProto, Constants], list[bool] | None]] = {
    "Pad": _unpadded,
    "Resize": _unscaled,
}
"""Which dimensions an operator passes on as they are; None when that cannot be said."""


def _with_names(
    source: onnx.ValueInfoProto, output: onnx.ValueInfoProto, untouched: list[bool]
) -> onnx.ValueInfoProto | None:
    """`output` with the dimension names of `source` where it is untouched; None if it has them."""
    before, corrected = source.type.tensor_type.shape.dim, onnx.ValueInfoProto()
    corrected.CopyFrom(output)
    after, changed = corrected.type.tensor_type.shape.dim, False
    if not len(before) == len(after) == len(untouched):
        return None
    for old, new, same in zip(before, after, untouched, strict=True):
        if same and old.dim_param and old.dim_param != new.dim_param:
            new.dim_param = old.dim_param
            changed = True
    return corrected if changed else None
