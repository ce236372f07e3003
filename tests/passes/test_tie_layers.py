"""Layers that share a weight: one grid around them, and one set of codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import ptq
from ptq.plan import Plan
from tests.passes.small_graphs import draw, graph

SAMPLES = draw(32, 16)


def unrolled(last: float = 1.0) -> ir.Model:
    """Three steps of tanh(x w), the last one's input multiplied."""
    weights = {"w": draw(16, 16), "f": np.float32(last)}
    first = "a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) d = Tanh(c)"
    steps = f"{first} e = Mul(d, f) y = MatMul(e, w)"
    return graph(f"(float[N, 16] x) => (float[N, 16] y) {{ {steps} }}", weights)


def plan_of(model: ir.Model) -> Plan:
    recipe = ptq.Recipe(effort="fast", edge_bits=None)
    return ptq.quantize(model, calib={"x": SAMPLES}, recipe=recipe).plan


def test_like_steps_have_equal_grids_and_the_same_codes() -> None:
    plan = plan_of(unrolled())
    weights = list(plan.weights.values())
    assert plan.activations["c"].scale == plan.activations["y"].scale
    assert plan.activations["b"].scale == plan.activations["d"].scale
    np.testing.assert_array_equal(weights[1].scale, weights[2].scale)
    assert weights[1].codes is weights[2].codes


@pytest.mark.parametrize("last", [0.01, 100.0])
def test_a_step_of_another_size_keeps_its_grid(last: float) -> None:
    plan = plan_of(unrolled(last))
    ratio = plan.activations["y"].scale / plan.activations["c"].scale
    assert ratio == pytest.approx(last, rel=0.7)
