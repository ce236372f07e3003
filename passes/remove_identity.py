"""Remove what computes nothing at inference: Identity, Dropout, a Concat of one operand, a Resize
to the sizes that are there, and nodes that nobody reads.

Left alone: an Identity between a graph input and a graph output (both names must stay), Dropout in
training mode or with its mask in use.
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.rewriting import (
    bypass,
    constant,
    dim,
    input_at,
    ints_attribute,
    is_op,
    rank,
    remove_unused,
    string_attribute,
)


def remove_identity(graph: ir.Graph) -> int:
    """Remove every removable node; returns how many nodes and constants went."""
    removed = 0
    for node in graph:
        source = input_at(node, 0)
        if source is not None and _computes_nothing(node):
            removed += bypass(node, source)
    return removed + remove_unused(graph)


def _computes_nothing(node: ir.Node) -> bool:
    if is_op(node, "Identity") or (is_op(node, "Concat") and len(node.inputs) == 1):
        return True
    if is_op(node, "Resize"):
        return _keeps_sizes(node)
    if not is_op(node, "Dropout"):
        return False
    training = input_at(node, 2)
    flag = constant(training)
    off = training is None or (flag is not None and not bool(flag.item()))
    return off and not any(out.uses() or out.is_graph_output() for out in node.outputs[1:])


def _keeps_sizes(resize: ir.Node) -> bool:
    """True where every size is the one that is there already: all modes but a crop's copy then."""
    x, scales, sizes = (
        resize.inputs[0],
        constant(input_at(resize, 2)),
        constant(input_at(resize, 3)),
    )
    crops = string_attribute(resize, "coordinate_transformation_mode", "half_pixel")
    if x is None or crops == "tf_crop_and_resize":
        return False
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    axes = ints_attribute(resize, "axes") or range(rank(x) or 0)
    return sizes is not None and [dim(x, axis) for axis in axes] == sizes.tolist()
