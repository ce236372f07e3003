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
from ptq.passes.fix_reshape import fix_reshape
from ptq.passes.fold_batch_norm import fold_batch_norm
from ptq.passes.remove_identity import remove_identity
from ptq.passes.rewriting import Rewrite
from ptq.passes.simplify import infer_shapes, simplify
from ptq.passes.simplify_child import TARGET_OPSET
from ptq.sandbox import Limits

REWRITES: tuple[Rewrite, ...] = (
    remove_identity,
    fix_reshape,
    fold_batch_norm,
)
"""Run in this order, over and over until none changes anything."""

_ROUNDS = 8


def prepare(model: ir.Model, limits: Limits | None = None) -> ir.Model:
    """A prepared copy of `model`; the model itself is not touched.

    `limits` bounds each child process (simplifier, shape inference).

    Raises:
        InvalidModelError: NaN in a constant, Inf in a weight, or an operator used wrongly.
        UnsupportedModelError: the functions cannot be inlined, or opset 21 is out of reach.
    """
    check_finite(model)
    prepared = model.clone()
    _inline(prepared)
    _lift_constants(prepared)
    prepared = simplify(prepared, limits)
    _lift_constants(prepared)
    _rewrite(prepared.graph)
    prepared.graph.sort()
    common.NameFixPass()(prepared)
    prepared.ir_version = max(prepared.ir_version, 10)
    infer_shapes(prepared, limits)
    return prepared


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
