"""balance_channels: the same function in float, less error in integers where a channel is wide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq.integer.outline import outline
from ptq.integer.weights import table_axis
from ptq.passes.balance_channels import balance_channels
from ptq.passes.equivalence import largest_difference
from ptq.recipe import Recipe
from tests.passes.small_graphs import draw, graph

BITS = (8, 8)


def model(widest: float, body: str = "y = MatMul(n, w)") -> ir.Model:
    scale = np.ones(16, np.float32)
    scale[3] = widest
    weights = {"s": scale, "b": draw(16), "w": draw(16, 6), "v": draw(6, 16)}
    text = f"(float[N, 5, 16] x) => (float[N, 5, 6] y) {{ n = LayerNormalization(x, s, b) {body} }}"
    return graph(text, weights)


def batches(size: int) -> Iterator[Mapping[str, Any]]:
    return iter([{"x": draw(8, 5, 16, seed=i)} for i in range(8)])


def test_a_wide_channel_is_balanced_and_the_function_kept() -> None:
    before = model(60.0)
    after, done = balance_channels(before, batches, *BITS)
    (balanced,) = done
    assert balanced.error_after < balanced.error_before / 4
    assert largest_difference(before, after, {"x": draw(4, 5, 16, seed=99)}).relative < 1e-5
    norm = next(node for node in after.graph if node.op_type == "LayerNormalization")
    scale = norm.inputs[1].const_value.numpy()
    assert scale.max() / scale.min() < 60 / 4


def test_even_channels_are_left_alone() -> None:
    _, done = balance_channels(model(1.0), batches, *BITS)
    assert not done


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    body = "m = MatMul(n, w) r = ReduceMax<keepdims = 1>(n) y = Add(m, r)"
    _, done = balance_channels(model(60.0, body), batches, *BITS)
    assert not done


FUNCTIONS = {
    "operator": "g = Gelu(h)",
    "written out": "d = Mul(h, r) f = Erf(d) p = Add(f, one) q = Mul(h, p) g = Mul(q, half)",
    "SiLU": "f = Sigmoid(h) g = Mul(h, f)",
}


def function(body: str, widest: float = 60.0) -> ir.Model:
    wide = draw(16, 16)
    wide[:, 3] *= widest
    numbers = {"r": np.float32(0.5**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    weights = {"u": wide, "w": draw(16, 6), "b": draw(16)} | numbers
    text = f"(float[N, 5, 16] x) => (float[N, 5, 6] y) {{ m = MatMul(x, u) h = Add(m, b) {body} }}"
    return graph(text, weights)


@pytest.mark.parametrize("form", FUNCTIONS)
def test_a_function_is_balanced_by_a_table_a_channel(form: str) -> None:
    before = function(f"{FUNCTIONS[form]} y = MatMul(g, w)")
    after, (balanced,) = balance_channels(before, batches, *BITS)
    assert balanced.error_after < balanced.error_before / 4
    assert largest_difference(before, after, {"x": draw(4, 5, 16, seed=99)}).relative < 1e-5
    tables = [u for u in outline(after, Recipe()).units if u.kind == "lookup"]
    assert [table_axis(unit) for unit in tables] == [-1]


@pytest.mark.parametrize("body", ["g = Relu(h)", "k = Sigmoid(x) g = Mul(h, k)", "g = Mul(h, r)"])
def test_what_is_no_curve_of_one_tensor_is_left_alone(body: str) -> None:
    _, done = balance_channels(function(f"{body} y = MatMul(g, w)"), batches, *BITS)
    assert not done


def tied(widest: float) -> ir.Model:
    """Two norms whose products have one weight."""
    scale = np.ones(16, np.float32)
    scale[3] = widest
    weights = {"s": scale, "b": draw(16), "w": draw(16, 16), "v": draw(16, 6)}
    body = "n = LayerNormalization(x, s, b) h = MatMul(n, w) m = LayerNormalization(h, s, b)"
    text = (
        f"(float[N, 5, 16] x) => (float[N, 5, 6] y) {{ {body} g = MatMul(m, w) y = MatMul(g, v) }}"
    )
    return graph(text, weights)


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    before = tied(60.0)
    after, done = balance_channels(before, batches, *BITS)
    assert len(done) == 2
    assert largest_difference(before, after, {"x": draw(4, 5, 16, seed=99)}).relative < 1e-5
    first, second = [node for node in after.graph if node.op_type == "MatMul"][:2]
    assert first.inputs[1] is second.inputs[1]
