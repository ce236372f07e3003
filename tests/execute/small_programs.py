"""Small integer programs, and what the reference makes of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.differentiable import (
    ProgramGraph,
    to_array,
    to_tensor,
)
from ptq.grid import Grid
from ptq.integer.arithmetic import Requantizer
from ptq.integer.program import (
    Boundary,
    Dequantize,
    Gemm,
    Program,
    Quantize,
    Step,
)
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.plan import ActivationPlan
from ptq.recipe import Recipe
from ptq.result import Result
from tests.graphs import random_graph

PRECISIONS = ("w8a8", "w4a8", "w2a8", "w4a4", "w3a8")
Array = npt.NDArray[Any]


def grid(scale: float = 0.05, zero_point: int = 0, high: int = 255) -> ActivationPlan:
    return ActivationPlan(Grid(), np.float32(scale), zero_point, 0, high)


def requantizer(
    multiplier: Any = 1, shift: Any = 0, zero_point: int = 0, high: int = 255
) -> Requantizer:
    return Requantizer(
        np.asarray(multiplier, np.int64), np.asarray(shift, np.int64), zero_point, 0, high
    )


def program(steps: list[Step], codes: dict[str, ActivationPlan], **fields: Any) -> Program:
    """x is quantised first and y dequantised last."""
    boundary = {n: Boundary(n, ir.DataType.FLOAT, None) for n in "xy"}
    ends = Quantize("x/quantize", "x"), Dequantize("y/dequantize", "y")
    return Program((boundary["x"],), (boundary["y"],), (ends[0], *steps, ends[1]), codes, **fields)


def gemm(weight: Any, bias: Any = None, **requantize: Any) -> Gemm:
    weight = np.asarray(weight, np.int8)
    bias = None if bias is None else np.asarray(bias, np.int32)
    scale = np.ones(weight.shape[1], np.float32)
    return Gemm("fc", "x", "y", weight, bias, requantizer(**requantize), scale)


@functools.cache
def random_program(seed: int, residual_bits: int = 16) -> tuple[Result, dict[str, Array]]:
    """A quantised random graph and a batch for it that also leaves the calibrated ranges."""
    proto, shapes = random_graph(seed)
    rng = np.random.default_rng(seed)
    (name, shape), *_ = shapes.items()
    samples = [{name: rng.normal(size=(4, *shape)).astype(np.float32)} for _ in range(2)]
    recipe = Recipe.preset(PRECISIONS[seed % len(PRECISIONS)]).replace(
        seed=seed,
        effort="fast",
        rounding="nearest",
        bias_correction=False,
        residual_bits=residual_bits,
    )
    feeds = {name: (2 * rng.normal(size=(3, *shape))).astype(np.float32)}
    return quantize(proto, samples, recipe), feeds


def assert_equal_codes(graph: ProgramGraph, program: Program, feeds: dict[str, Array]) -> None:
    expected = Reference(program).run_codes(feeds)
    found = graph.run(raw={n: to_tensor(a) for n, a in feeds.items()}).codes
    for name, codes in expected.items():
        np.testing.assert_array_equal(to_array(found[name]), codes, name)
