"""Give Resize constant sizes where only the batch is unknown.

Exporters compute Resize's `sizes` from Shape(x) when the batch is dynamic. Batch and channels are
not resized, so the spatial sizes alone, with `axes`, say the same and are constant.

Left alone: spatial sizes that are unknown, a batch that is resized, keep_aspect_ratio policies.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    add_initializer,
    constant,
    input_at,
    is_op,
    remove_unused,
    string_attribute,
)
from ptq.passes.shape_values import dims, evaluate


def fix_resize(graph: ir.Graph) -> int:
    """Make constant the sizes of every Resize that allows it; returns how many."""
    fixed = sum(_fix(graph, node) for node in graph if is_op(node, "Resize"))
    if fixed:
        remove_unused(graph)
    return fixed


def _fix(graph: ir.Graph, node: ir.Node) -> bool:
    sizes, source = input_at(node, 3), node.inputs[0]
    if sizes is None or constant(sizes) is not None or "axes" in node.attributes:
        return False
    if string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    entries, before = evaluate(sizes, 0), dims(source)
    if entries is None or len(entries) != len(before) or len(before) < 3:
        return False
    if entries[0] is None or entries[:2] != before[:2]:
        return False
    spatial = [entry for entry in entries[2:] if isinstance(entry, int)]
    if len(spatial) != len(before) - 2:
        return False
    name = f"{node.outputs[0].name}/sizes"
    node.replace_input_with(3, add_initializer(graph, name, np.array(spatial, np.int64)))
    node.attributes["axes"] = ir.AttrInt64s("axes", list(range(2, len(before))))
    if node.outputs[0].shape is None or not node.outputs[0].shape.is_static():
        head = list(source.shape)[:2] if source is not None and source.shape is not None else []
        node.outputs[0].shape = ir.Shape([*head, *spatial])
    return True
