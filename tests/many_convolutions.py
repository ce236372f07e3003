"""A network with every kind of convolution: what kernels are chosen by."""

from __future__ import annotations

import functools

import numpy as np
import onnx

from ptq.integer.program import Program
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from tests.graphs import GraphBuilder

SHAPE = (3, 9, 7)


def many_convolutions() -> onnx.ModelProto:
    """Padded, strided, dilated, depthwise (16 channels, 6, two a channel), grouped, 1x1."""
    b = GraphBuilder(np.random.default_rng(11))

    def conv(x: str, out: int, width: int, size: int = 3, **attributes: object) -> str:
        y = b.node("Conv", [x, b.weight(out, width, size, size), b.bias(out)], **attributes)
        return b.node("Relu", [y])

    same = {"pads": [1, 1, 1, 1]}
    y = conv("x", 16, 3, **same)
    y = conv(y, 16, 1, group=16, **same)
    y = conv(y, 6, 16, size=1)
    y = conv(y, 6, 1, group=6, strides=[2, 1], **same)
    y = conv(y, 12, 1, group=6, size=1)
    y = conv(y, 10, 6, group=2, pads=[1, 0, 1, 2])
    y = conv(y, 20, 10, size=2, dilations=[1, 2], strides=[1, 2], pads=[1, 0, 0, 1])
    y = b.node("Flatten", [b.node("GlobalAveragePool", [y])])
    y = b.node("Gemm", [y, b.weight(5, 20), b.bias(5)], transB=1)
    return b.model({"x": SHAPE}, {y: (5,)})


def many_samples(count: int, seed: int = 1) -> np.ndarray:
    """Inputs of it: [count, 3, 9, 7] float32."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


@functools.cache
def many_program() -> Program:
    """It, quantised to w8a8."""
    recipe = Recipe.preset("w8a8").replace(effort="fast")
    return quantize(many_convolutions(), [{"x": many_samples(16)}], recipe).program
