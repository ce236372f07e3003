"""A network that learns in a second: what learned rounding is tested on."""

from __future__ import annotations

import numpy as np
import onnx

from tests.graphs import GraphBuilder

SHAPE = (2, 6, 6)


def conv_net() -> onnx.ModelProto:
    """Three convolutions and a classifier; the outer layers have 8-bit weights."""
    b = GraphBuilder(np.random.default_rng(5))
    y = "x"
    for inputs in (2, 6, 6):
        y = b.node("Conv", [y, b.weight(6, inputs, 3, 3), b.bias(6)], pads=[1, 1, 1, 1])
        y = b.node("Relu", [y])
    y = b.node("Flatten", [b.node("GlobalAveragePool", [y])])
    y = b.node("Gemm", [y, b.weight(4, 6)], transB=1)
    return b.model({"x": SHAPE}, {y: (4,)})


def conv_samples(count: int, seed: int = 1) -> np.ndarray:
    """Inputs of `conv_net`: [count, 2, 6, 6] float32."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)
