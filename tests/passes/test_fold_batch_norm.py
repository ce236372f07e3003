"""BN(x) = gamma (x - mean) / sqrt(var + eps) + beta, folded into its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.fold_batch_norm import fold_batch_norm


def bn(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": draw(channels, seed=1),
        "beta": draw(channels, seed=2),
        "mean": draw(channels, seed=3),
        "var": np.abs(draw(channels, seed=4)) + 0.1,
    }


BN = "BatchNormalization <epsilon: float = 0.001> (h, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("pads: ints = [1, 1, 1, 1]", (6, 4, 3, 3)),
        ("group: int = 2", (6, 2, 3, 3)),
        ("strides: ints = [2, 2], dilations: ints = [2, 1]", (6, 4, 2, 3)),
    ],
)
def test_after_conv(attributes: str, weight: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N, 4, 9, 8] x) => (float[N, 6, A, B] y)"
        f"{{ h = Conv<{attributes}>(x, w, b) y = {BN} }}",
        {"w": draw(*weight), "b": draw(6), **bn(6)},
    )
    after = rewritten(model, fold_batch_norm)
    assert ops(after) == {"Conv": 1}
    assert [output.name for output in after.graph.outputs] == ["y"]


def test_after_conv_without_bias_adds_one() -> None:
    model = graph(
        f"(float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y) {{ h = Conv(x, w) y = {BN} }}",
        {"w": draw(6, 4, 3, 3), **bn(6)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Conv": 1}


@pytest.mark.parametrize(("group", "weight"), [(1, (4, 6, 2, 2)), (2, (4, 3, 2, 2))])
def test_after_conv_transpose(group: int, weight: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N, 4, 5, 5] x) => (float[N, 6, A, B] y)"
        f"{{ h = ConvTranspose<group: int = {group}, strides: ints = [2, 2]>(x, w, b) y = {BN} }}",
        {"w": draw(*weight), "b": draw(6), **bn(6)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"ConvTranspose": 1}


@pytest.mark.parametrize(("trans", "weight"), [(0, (4, 6)), (1, (6, 4))])
def test_after_gemm_with_alpha_and_beta(trans: int, weight: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N, 4] x) => (float[N, 6] y) {{"
        f"h = Gemm<alpha: float = 0.5, beta: float = 2.0, transB: int = {trans}>(x, w, b)"
        f"y = {BN} }}",
        {"w": draw(*weight), "b": draw(6), **bn(6)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Gemm": 1}


@pytest.mark.parametrize(("group", "weight"), [(1, (6, 4, 3, 3)), (2, (6, 2, 3, 3))])
def test_before_conv_without_padding(group: int, weight: tuple[int, ...]) -> None:
    model = graph(
        f"(float[N, 4, 5, 5] h) => (float[N, 6, 3, 3] y)"
        f"{{ n = {BN} y = Conv<group: int = {group}>(n, w, b) }}",
        {"w": draw(*weight), "b": draw(6), **bn(4)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Conv": 1}


def test_before_padded_conv_becomes_mul_and_add() -> None:
    # A folded offset would also be subtracted from the border's zeros.
    model = graph(
        f"(float[N, 4, 5, 5] h) => (float[N, 6, 5, 5] y)"
        f"{{ n = {BN} y = Conv<pads: ints = [1, 1, 1, 1]>(n, w) }}",
        {"w": draw(6, 4, 3, 3), **bn(4)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Mul": 1, "Add": 1, "Conv": 1}


def test_before_padded_conv_without_offset_is_exact() -> None:
    numbers = {**bn(4), "beta": np.zeros(4, np.float32), "mean": np.zeros(4, np.float32)}
    model = graph(
        f"(float[N, 4, 5, 5] h) => (float[N, 6, 5, 5] y)"
        f"{{ n = {BN} y = Conv<pads: ints = [1, 1, 1, 1]>(n, w) }}",
        {"w": draw(6, 4, 3, 3), **numbers},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Conv": 1}


@pytest.mark.parametrize("shape", ["N, 4", "N, 4, 5", "N, 4, 5, 5"])
def test_standalone_becomes_mul_and_add(shape: str) -> None:
    model = graph(f"(float[{shape}] h) => (float[{shape}] y) {{ y = {BN} }}", bn(4))
    assert ops(rewritten(model, fold_batch_norm)) == {"Mul": 1, "Add": 1}


def test_conv_with_a_second_reader_keeps_its_weights() -> None:
    model = graph(
        f"(float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y, float[N, 6, 3, 3] z)"
        f"{{ h = Conv(x, w) y = {BN} z = Relu(h) }}",
        {"w": draw(6, 4, 3, 3), **bn(6)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Conv": 1, "Mul": 1, "Add": 1, "Relu": 1}


def test_weight_shared_by_two_convs_is_copied() -> None:
    model = graph(
        f"(float[N, 4, 5, 5] x) => (float[N, 6, 3, 3] y, float[N, 6, 3, 3] z)"
        f"{{ h = Conv(x, w) y = {BN} z = Conv(x, w) }}",
        {"w": draw(6, 4, 3, 3), **bn(6)},
    )
    assert ops(rewritten(model, fold_batch_norm)) == {"Conv": 2}


def test_leaves_alone_statistics_that_are_computed() -> None:
    model = graph(
        "(float[N, 4, 5, 5] h, float[4] m) => (float[N, 4, 5, 5] y)"
        "{ y = BatchNormalization(h, gamma, beta, m, var) }",
        {name: array for name, array in bn(4).items() if name != "mean"},
    )
    declined(model, fold_batch_norm)


def test_leaves_alone_training_mode() -> None:
    model = graph(
        "(float[N, 4, 5, 5] h) => (float[N, 4, 5, 5] y)"
        "{ y, m, v = BatchNormalization<training_mode: int = 1>(h, gamma, beta, mean, var) }",
        bn(4),
    )
    declined(model, fold_batch_norm)
