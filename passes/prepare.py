"""Bring a float model into the form that everything after it expects.

After `prepare`: no functions, opset 21 or above, constants are initializers, batch norm is folded,
shapes are known where the model determines them (a dynamic batch stays dynamic), every value and
node has its own name, and what no integer target has is written in operators that they have.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from ptq.errors import UnsupportedModelError
from ptq.finite import check_finite
from ptq.passes.divide_by_multiplying import divide_by_multiplying
from ptq.passes.drop_empty import drop_empty
from ptq.passes.drop_neutral_tests import drop_neutral_tests
from ptq.passes.expand_conv_transpose import expand_conv_transpose
from ptq.passes.fix_reshape import fix_reshape
from ptq.passes.fix_resize import fix_resize
from ptq.passes.flatten_norms import flatten_norms
from ptq.passes.fold_batch_norm import fold_batch_norm
from ptq.passes.fold_channel_scale import fold_channel_scale
from ptq.passes.fold_constants import fold_constants
from ptq.passes.fold_embeddings import fold_embeddings
from ptq.passes.fuse_gemm import fuse_gemm
from ptq.passes.mask_average_pool import mask_average_pool
from ptq.passes.merge_pads import merge_pads
from ptq.passes.merge_transposes import merge_transposes
from ptq.passes.remove_identity import remove_identity
from ptq.passes.rewriting import Rewrite, remove_unused
from ptq.passes.set_input_shapes import InputShapes, set_input_shapes
from ptq.passes.simplify import FIRST_IR_VERSION, infer_shapes, simplify
from ptq.passes.simplify_child import TARGET_OPSET
from ptq.passes.sink_scalars import sink_scalars
from ptq.passes.split_norms import split_norms
from ptq.passes.write_mask_as_where import write_mask_as_where
from ptq.passes.write_pads import write_pads
from ptq.passes.write_resize_as_matmul import write_resize_as_matmul
from ptq.passes.write_unit_norms import write_unit_norms
from ptq.sandbox import Limits

REWRITES: tuple[Rewrite, ...] = (
    remove_identity,
    fold_constants,
    drop_empty,
    drop_neutral_tests,
    fix_reshape,
    fix_resize,
    write_pads,
    merge_pads,
    merge_transposes,
    fuse_gemm,
    fold_batch_norm,
    fold_channel_scale,
    fold_embeddings,
    expand_conv_transpose,
    mask_average_pool,
    write_resize_as_matmul,
    write_unit_norms,
    divide_by_multiplying,
    write_mask_as_where,
    sink_scalars,
    flatten_norms,
    split_norms,
)
"""Run in this order, over and over until none changes anything."""

_ROUNDS = 8

NO_SHAPES: InputShapes = {}


def prepare(
    model: ir.Model, limits: Limits | None = None, *, input_shapes: InputShapes = NO_SHAPES
) -> ir.Model:
    """A prepared copy of `model`; the model itself is not touched.

    `limits` bounds each child process (simplifier, shape inference). `input_shapes`: sizes of
    inputs that the model leaves open.

    Raises:
        UsageError: input shapes that do not fit the model.
        InvalidModelError: NaN in a constant, Inf in a weight, or an operator used wrongly.
        UnsupportedModelError: the functions cannot be inlined, or opset 21 is out of reach.
    """
    check_finite(model)
    prepared = _own_copy(model)
    set_input_shapes(prepared.graph, input_shapes)
    _inline(prepared)
    _lift_constants(prepared)
    prepared = simplify(prepared, limits)
    _lift_constants(prepared)
    _rewrite(prepared.graph)
    prepared.graph.sort()
    common.NameFixPass()(prepared)
    prepared.ir_version = max(prepared.ir_version, FIRST_IR_VERSION)
    infer_shapes(prepared, limits)
    return prepared


def tidy(model: ir.Model, limits: Limits | None = None) -> ir.Model:
    """A copy that computes what `model` does by the same operators.

    After it: no functions, constants are initializers, what is constant is folded, every node and
    value has its own name, and shapes are known as far as the model determines them.

    Raises:
        InvalidModelError: NaN in a constant, or Inf in a weight.
        UnsupportedModelError: the functions cannot be inlined.
    """
    check_finite(model)
    copy = _own_copy(model)
    _inline(copy)
    _lift_constants(copy)
    fold_constants(copy.graph)
    remove_unused(copy.graph)
    copy.graph.sort()
    common.NameFixPass()(copy)
    infer_shapes(copy, limits)
    return copy


def _own_copy(model: ir.Model) -> ir.Model:
    """A clone whose Constant nodes have tensors of their own: lifting one renames its tensor."""
    copy = model.clone()
    for graph in (copy.graph, *(function.graph for function in copy.functions.values())):
        for node in graph.all_nodes():
            value = node.attributes.get("value")
            if node.op_type != "Constant" or value is None or value.is_ref():
                continue
            tensor = value.as_tensor()
            if tensor.dtype != ir.DataType.STRING:
                own = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
                node.attributes["value"] = ir.AttrTensor("value", own)
    return copy


def _inline(model: ir.Model) -> None:
    if not model.functions:
        return
    try:
        common.InlinePass()(model)
        model.functions.clear()
    except Exception as error:
        raise UnsupportedModelError(
            f"model: its functions cannot be inlined ({error}). Export it again without functions, "
            f"at opset {TARGET_OPSET}."
        ) from error


def _lift_constants(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.RemoveInitializersFromInputsPass()(model)


def _rewrite(graph: ir.Graph) -> None:
    for _ in range(_ROUNDS):
        if not sum(rewrite(graph) for rewrite in REWRITES):
            return
