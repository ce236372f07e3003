"""Add(MatMul(x, W), b) = Gemm(x, W, b); Gemm(alpha, beta) = Gemm with scaled constants."""

from __future__ import annotations

import pytest
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.fuse_gemm import fuse_gemm


@pytest.mark.parametrize("add", ["Add(h, b)", "Add(b, h)"])
@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,), ()])
def test_fuses_rank_two(add: str, bias: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N, 4] x) => (float[N, 6] y) {{ h = MatMul(x, w) y = {add} }}",
        {"w": draw(4, 6), "b": draw(*bias)},
    )
    after = rewritten(model, fuse_gemm)
    assert ops(after) == {"Gemm": 1}
    assert after.graph[0].inputs[2].shape == (6,)


@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,)])
def test_normalizes_alpha_and_beta(bias: tuple[int, ...]) -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 6] y)"
        "{ y = Gemm<alpha: float = 0.5, beta: float = 3.0, transB: int = 1>(x, w, b) }",
        {"w": draw(6, 4), "b": draw(*bias)},
    )
    after = rewritten(model, fuse_gemm)
    assert "alpha" not in after.graph[0].attributes
    assert "beta" not in after.graph[0].attributes


def test_leaves_alone_rank_three() -> None:
    model = graph(
        "(float[N, 3, 4] x) => (float[N, 3, 6] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": draw(4, 6), "b": draw(6)},
    )
    declined(model, fuse_gemm)


def test_leaves_alone_bias_along_rows() -> None:
    model = graph(
        "(float[2, 4] x) => (float[2, 6] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": draw(4, 6), "b": draw(2, 1)},
    )
    declined(model, fuse_gemm)


def test_leaves_alone_computed_weight_and_second_reader() -> None:
    declined(
        graph(
            "(float[N, 4] x, float[4, 6] w) => (float[N, 6] y) { h = MatMul(x, w) y = Add(h, b) }",
            {"b": draw(6)},
        ),
        fuse_gemm,
    )
    declined(
        graph(
            "(float[N, 4] x) => (float[N, 6] y, float[N, 6] h) { h = MatMul(x, w) y = Add(h, b) }",
            {"w": draw(4, 6), "b": draw(6)},
        ),
        fuse_gemm,
    )
