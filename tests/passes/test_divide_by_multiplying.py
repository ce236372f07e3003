"""Div(a, b) = Mul(a, Reciprocal(b))."""

from __future__ import annotations

import numpy as np
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.divide_by_multiplying import divide_by_multiplying


def test_division_by_a_computed_tensor() -> None:
    model = graph("(float[N, 4] x) => (float[N, 4] y) { e = Exp(x) y = Div(x, e) }")
    assert ops(rewritten(model, divide_by_multiplying)) == {"Exp": 1, "Reciprocal": 1, "Mul": 1}


def test_one_over_x_is_the_reciprocal() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y) { e = Exp(x) y = Div(one, e) }", {"one": np.float32(1)}
    )
    assert ops(rewritten(model, divide_by_multiplying)) == {"Exp": 1, "Reciprocal": 1}


def test_leaves_alone_constant_divisors_and_integers() -> None:
    declined(
        graph("(float[N, 4] x) => (float[N, 4] y) { y = Div(x, c) }", {"c": draw(4)}),
        divide_by_multiplying,
    )
    declined(
        graph("(int64[N] x, int64[N] z) => (int64[N] y) { y = Div(x, z) }"), divide_by_multiplying
    )
