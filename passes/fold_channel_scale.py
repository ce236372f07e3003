"""Fold Mul, Add, Sub and Div by a per-channel constant into the layer before.

    (W x + b) * c,  (W x + b) + c,  (W x + b) - c,  (W x + b) / c,  c - (W x + b)

with c one number, or one number a channel, are layers with other constants; see channel_affine.py.
Left alone: a layer that something else reads too, a constant that varies along another axis, a
division by zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ptq.passes.channel_affine import ChannelAffine, Vector, absorb, vector_along_channels
from ptq.passes.rewriting import bypass, constant, is_op, sole_producer


def fold_channel_scale(graph: ir.Graph) -> int:
    """Fold every foldable constant of `graph`; returns how many."""
    return sum(_fold(node) for node in graph if is_op(node, *_RULES))


def _fold(node: ir.Node) -> bool:
    for index in (0, 1):
        source, array = node.inputs[index], constant(node.inputs[1 - index])
        layer = sole_producer(source)
        if layer is None or array is None or source is None:
            continue
        vector = vector_along_channels(array, layer)
        affine = None if vector is None else _RULES[node.op_type](vector, index)
        if affine is not None and absorb(layer, affine):
            name = node.outputs[0].name
            if bypass(node, source):
                source.name = name
            return True
    return False


def _mul(c: Vector, index: int) -> ChannelAffine | None:
    return ChannelAffine(c, np.zeros_like(c))


def _add(c: Vector, index: int) -> ChannelAffine | None:
    return ChannelAffine(np.ones_like(c), c)


def _sub(c: Vector, index: int) -> ChannelAffine | None:
    sign = np.ones_like(c) if index == 0 else -np.ones_like(c)
    return ChannelAffine(sign, -sign * c)


def _div(c: Vector, index: int) -> ChannelAffine | None:
    return ChannelAffine(1 / c, np.zeros_like(c)) if index == 0 and np.all(c) else None


_RULES: dict[str, Callable[[Vector, int], ChannelAffine | None]] = {
    "Mul": _mul,
    "Add": _add,
    "Sub": _sub,
    "Div": _div,
}
"""(c, which input the layer is) -> the affine."""
