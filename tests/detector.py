"""A detector: boxes of hundreds of pixels and scores below one, at two scales, in one output."""

from __future__ import annotations

import numpy as np
import onnx

from tests.graphs import GraphBuilder

SHAPE = (3, 8, 8)
BOXES, CLASSES = 4, 2


def detector(*, turned: bool = False) -> onnx.ModelProto:
    """Output [batch, 6, 80], boxes first; [batch, 80, 6] if `turned`."""
    b = GraphBuilder(np.random.default_rng(3))
    fine = b.node("Relu", [b.node("Conv", ["x", b.weight(8, 3, 3, 3), b.bias(8)], pads=[1] * 4)])
    coarse = b.node("MaxPool", [fine], kernel_shape=[2, 2], strides=[2, 2])
    scales = []
    for features in (fine, coarse):
        parts = []
        for rows, factor in ((BOXES, 300.0), (CLASSES, None)):
            y = b.node("Conv", [features, b.weight(rows, 8, 1, 1), b.bias(rows)])
            y = b.node("Reshape", [y, b.constant(np.array([0, rows, -1]))])
            scaled = ["Mul", [y, b.constant(np.float32(factor))]] if factor else ["Sigmoid", [y]]
            parts.append(b.node(*scaled))
        scales.append(b.node("Concat", parts, axis=1))
    y = b.node("Concat", scales, axis=2)
    if turned:
        y = b.node("Transpose", [y], perm=[0, 2, 1])
    shape = (BOXES + CLASSES, 80)
    return b.model({"x": SHAPE}, {y: shape[::-1] if turned else shape})


def images(count: int, seed: int = 1) -> np.ndarray:
    """Inputs: [count, 3, 8, 8] float32."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)
