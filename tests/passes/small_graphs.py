"""Small float graphs for the tests of rewrites, written in ONNX's text form, and their proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir

from ptq.passes.equivalence import largest_difference

Array = npt.NDArray[np.generic]

TOLERANCE = 1e-5
"""Relative to the largest output: a rewrite reorders a few hundred float32 additions."""


def graph(text: str, weights: Mapping[str, Array] | None = None, opset: int = 21) -> ir.Model:
    """A model from `name (inputs) => (outputs) {nodes}` text, with shapes; weights as initializers.

    Weights are drawn by `draw` or given; they must not be inputs of the text.
    """
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} g {text}")
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal numbers, [*shape] float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ops(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs."""
    return dict(Counter(node.op_type for node in model.graph))


def feeds_for(model: ir.Model, batch: int = 2, seed: int = 7) -> dict[str, Array]:
    """Normal numbers for every input; a symbolic dimension becomes `batch`."""
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else batch for size in value.shape or ()]
        assert value.name is not None
        dtype = value.dtype.numpy() if value.dtype else np.float32
        feeds[value.name] = draw(*shape, seed=seed).astype(dtype)
    return feeds


def rewritten(
    model: ir.Model, rewrite: Callable[[ir.Graph], int], tolerance: float = TOLERANCE
) -> ir.Model:
    """The result, after proof: it changed something, kept the meaning, and is a no-op now."""
    after = model.clone()
    assert rewrite(after.graph) > 0, "the rewrite did not match"
    check(after)
    for batch in (1, 3):
        feeds = feeds_for(model, batch)
        assert largest_difference(model, after, feeds).relative <= tolerance
    again = after.clone()
    assert rewrite(again.graph) == 0, "a second run changed the graph again"
    return after


def declined(model: ir.Model, rewrite: Callable[[ir.Graph], int]) -> None:
    """Prove that the rewrite leaves the model exactly as it is."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert rewrite(model.graph) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def check(model: ir.Model) -> None:
    """onnx's checker with shape inference, unique names included."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = [output.name for node in model.graph for output in node.outputs]
    assert len(names) == len(set(names))
