"""(W x + b) * c, + c, - c, / c and c - (W x + b), with c per channel or one number."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.fold_channel_scale import fold_channel_scale

CONV = "(float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) { h = Conv(x, w, b)"


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
@pytest.mark.parametrize("op", ["Mul(h, c)", "Add(c, h)", "Sub(h, c)", "Sub(c, h)", "Div(h, c)"])
def test_folds_into_conv(op: str, shape: tuple[int, ...]) -> None:
    weights = {"w": draw(6, 4, 3, 3), "b": draw(6), "c": np.abs(draw(*shape, seed=5)) + 0.5}
    assert ops(rewritten(graph(f"{CONV} y = {op} }}", weights), fold_channel_scale)) == {"Conv": 1}


def test_folds_into_gemm_along_columns() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 6] y) { h = Gemm(x, w) y = Mul(h, c) }",
        {"w": draw(4, 6), "c": draw(6)},
    )
    assert ops(rewritten(model, fold_channel_scale)) == {"Gemm": 1}


def test_folds_a_chain_in_one_run() -> None:
    model = graph(
        f"{CONV} s = Mul(h, c) y = Add(s, d) }}",
        {"w": draw(6, 4, 3, 3), "b": draw(6), "c": draw(6, 1, 1), "d": draw(1, 6, 1, 1)},
    )
    assert ops(rewritten(model, fold_channel_scale)) == {"Conv": 1}


@pytest.mark.parametrize("shape", [(3, 3), (1, 6, 3, 1), (3,), (1, 1, 6, 1, 1)])
def test_leaves_alone_constants_along_other_axes(shape: tuple[int, ...]) -> None:
    text = "(float[N, 4, 5, 5] x) => (float y) { h = Conv(x, w) y = Mul(h, c) }"
    model = graph(
        text.replace(
            "float y", "float[A, B, C, D, E] y" if len(shape) == 5 else "float[N, 6, 3, 3] y"
        ),
        {"w": draw(6, 4, 3, 3), "c": draw(*shape)},
    )
    declined(model, fold_channel_scale)


def test_leaves_alone_a_layer_with_two_readers() -> None:
    model = graph(
        f"{CONV.replace('y)', 'y, float[N, 6, 3, 3] z)')} y = Mul(h, c) z = Relu(h) }}",
        {"w": draw(6, 4, 3, 3), "b": draw(6), "c": draw(6, 1, 1)},
    )
    declined(model, fold_channel_scale)


def test_leaves_alone_division_by_the_layer_and_by_zero() -> None:
    weights = {"w": draw(6, 4, 3, 3), "b": draw(6), "c": np.zeros((6, 1, 1), np.float32)}
    declined(graph(f"{CONV} y = Div(c, h) }}", weights), fold_channel_scale)
    declined(graph(f"{CONV} y = Div(h, c) }}", weights), fold_channel_scale)


def test_leaves_alone_a_scale_that_overflows_the_weight() -> None:
    weights = {"w": draw(6, 4, 3, 3), "b": draw(6), "c": np.float32(3e38) * np.ones((6, 1, 1), "f")}
    weights["w"][0, 0, 0, 0] = 1e6
    declined(graph(f"{CONV} y = Mul(h, c) }}", weights), fold_channel_scale)


def test_leaves_alone_a_producer_of_one_input_and_unknown_rank() -> None:
    model = graph(
        "(float[N, 4] x, int64[M] s) => (float[A] y)"
        "{ r = Reshape(x, s) c = Relu(r) y = Mul(c, k) }",
        {"k": np.array(2, np.float32)},
    )
    declined(model, fold_channel_scale)
