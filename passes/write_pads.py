"""Write automatic padding (auto_pad) as numbers.

SAME_UPPER and SAME_LOWER depend on the input's size, so a target that reads `pads` would need the
size again. Left alone: sizes that are unknown, ConvTranspose (see expand_conv_transpose.py).
"""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.rewriting import is_op
from ptq.passes.window import axes_of


def write_pads(graph: ir.Graph) -> int:
    """Replace auto_pad by pads wherever the sizes are known; returns how many."""
    written = 0
    for node in graph:
        if not is_op(node, "Conv", "AveragePool", "MaxPool", "LpPool"):
            continue
        if "auto_pad" not in node.attributes:
            continue
        axes = axes_of(node)
        if axes is None:
            continue
        del node.attributes["auto_pad"]
        pads = [axis.begin for axis in axes] + [axis.end for axis in axes]
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        written += 1
    return written
