"""How far integer nonlinearities are from the float ones, over their whole input range.

In steps of the output's grid: of the step alone, against the float function of what every input
code means; and of real inputs, whose rounding to codes comes on top, at most half an input step
times the steepest slope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import pytest
from scipy.special import erf, expit

from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.result import Result

Array = np.ndarray[Any, Any]
REACH, EPSILON, WIDTH = 8.0, 1e-5, 64
ROUNDING = 0.501  # half a step, and what float32 adds
FUNCTIONS: dict[str, tuple[str, Callable[[Array], Array], float]] = {
    "tanh": ("tanh = Tanh(x)", np.tanh, 1.0),
    "sigmoid": ("sigmoid = Sigmoid(x)", expit, 0.25),
    "silu": ("s = Sigmoid(x) silu = Mul(x, s)", lambda x: x * expit(x), 1.1),
    "gelu": ("gelu = Gelu(x)", lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, 1.13),
    "exp": ("exp = Exp(x)", np.exp, np.exp(REACH)),
}
"""ONNX nodes, the function in float64, its steepest slope."""


def quantized(
    nodes: str, samples: Array, outputs: list[str], constants: dict[str, Array] | None = None
) -> Result:
    last = samples.shape[-1]
    written = ", ".join(f"float[N, {last}] {name}" for name in outputs)
    head = f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, {last}] x) => ({written})'
    proto = onnx.parser.parse_model(f"{head} {{ {nodes} }}")
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = quantize(proto, [{"x": samples}], Recipe(calib_method="minmax"))
    assert not result.outline.islands
    return result


def meaning(result: Result, x: Array) -> Array:
    """What the codes of x stand for, float64."""
    grid = result.program.codes["x"]
    return grid.dequantize(grid.quantize(x)).astype(np.float64)


def error_in_steps(result: Result, name: str, x: Array, wanted: Array) -> float:
    """Largest difference of an output to `wanted`, in steps; beyond the grid's ends is no error."""
    grid = result.program.codes[name]
    ends = grid.dequantize(np.array([grid.low, grid.high], np.uint8))
    found = Reference(result.program).run({"x": x})[name]
    return float(np.abs(found - np.clip(wanted, *ends)).max() / grid.scale)


def test_a_table_is_the_float_function_rounded() -> None:
    sweep = np.linspace(-REACH, REACH, 4097, dtype=np.float32).reshape(1, -1)
    nodes = " ".join(written for written, _, _ in FUNCTIONS.values())
    result = quantized(nodes, sweep, list(FUNCTIONS))
    grid = result.program.codes["x"]
    points = grid.dequantize(np.resize(np.arange(256, dtype=np.uint8), sweep.shape))
    for name, (_, function, slope) in FUNCTIONS.items():
        wanted = function(points.astype(np.float64))
        assert error_in_steps(result, name, points, wanted) < ROUNDING, name
        moved = slope * float(grid.scale / result.program.codes[name].scale) / 2
        wanted = function(sweep.astype(np.float64))
        assert error_in_steps(result, name, sweep, wanted) < ROUNDING + moved, name


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


@pytest.mark.parametrize("length", [2, 17, 1024])
def test_softmax_is_within_a_code(length: int) -> None:
    rng = np.random.default_rng(length)
    spread = rng.uniform(0.01, REACH / 2, (64, 1))  # from flat rows to one winner
    x = np.clip(rng.normal(size=(64, length)) * spread, -REACH, REACH).astype(np.float32)
    x[0], x[1], x[1, 0] = 0, -REACH, REACH
    result = quantized("y = Softmax(x)", x, ["y"])
    wanted = softmax(meaning(result, x))
    assert error_in_steps(result, "y", x, wanted) < 0.52  # and of exponentials, 2^-16 each
    # all scores off by half a step, up or down: p moves by at most p (1 - p) times a whole step
    step = float(result.program.codes["x"].scale)
    wanted = softmax(x.astype(np.float64))
    assert error_in_steps(result, "y", x, wanted) < 0.52 + 256 * step * np.exp(step) / 4


NORMS = {
    "layer norm": "y = LayerNormalization<epsilon = 0.00001>(x, scale, bias)",
    "rms norm": "q = Mul(x, x) v = ReduceMean(q, axis) e = Add(v, epsilon) r = Sqrt(e) "
    "d = Div(x, r) s = Mul(d, scale) y = Add(s, bias)",
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_any_row_is_its_float_rounded(name: str) -> None:
    rng = np.random.default_rng(5)
    constants = {
        "scale": rng.normal(1, 0.3, WIDTH).astype(np.float32),
        "bias": rng.normal(0, 0.3, WIDTH).astype(np.float32),
        "epsilon": np.float32(EPSILON),
        "axis": np.array([-1]),
    }
    x = rng.normal(size=(128, WIDTH)) * np.geomspace(0.05, REACH / 3, 128)[:, None]
    x[0], x[1], x[2, ::2], x[2, 1::2] = 0, REACH, REACH, -REACH
    x = np.clip(x + rng.normal(size=(128, 1)), -REACH, REACH).astype(np.float32)
    result = quantized(NORMS[name], x, ["y"], constants)
    row = meaning(result, x)
    row -= row.mean(-1, keepdims=True) if name == "layer norm" else 0
    wanted = row / np.sqrt((row**2).mean(-1, keepdims=True) + EPSILON)
    wanted = wanted * constants["scale"] + constants["bias"]
    assert error_in_steps(result, "y", x, wanted) < 0.51
