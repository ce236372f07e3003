"""A node of constant inputs is a constant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes import fold_constants as module
from ptq.passes.fold_constants import fold_constants

IDS = np.array([2, 0], np.int64)


@pytest.mark.parametrize(
    "text",
    [
        "c = Transpose(w)",
        "c = Transpose<perm: ints = [1, 0]>(w)",
        "t = Reshape(w, s) c = Squeeze(t, zero)",
        "t = Unsqueeze(w, zero) c = Flatten<axis: int = 2>(t)",
        "c = Concat<axis: int = 0>(w, v)",
        "c = Gather<axis: int = 1>(w, ids)",
        "c = Slice(w, lo, hi, axes, steps)",
        "a = Add(w, v) b = Sub(a, r) d = Mul(b, v) c = Div(d, r)",
        "a = Exp(w) b = Sqrt(a) d = Reciprocal(b) c = Neg(d)",
        "c = Cast<to: int = 11>(w) ",
        "c = Expand(r, big)",
        "c = Tile(r, twice)",
        "q = Equal(w, v) c = Where(q, w, v)",
        "n = Shape(w) c = ConstantOfShape(n)",
        "c = Identity(w)",
        "c = ScatterND(w, at, v)",
        "c = MatMul(w, square)",
    ],
)
def test_folds_to_what_onnxruntime_computes(text: str) -> None:
    weights = {
        "w": draw(3, 4),
        "v": draw(3, 4, seed=1),
        "r": draw(1, 4, seed=2),
        "s": np.array([1, 0, 3], np.int64) * 0 + np.array([1, 4, 3]),
        "zero": np.array([0], np.int64),
        "ids": IDS,
        "lo": np.array([-1, 0], np.int64),
        "hi": np.array([-(2**63), 3], np.int64),
        "axes": np.array([0, 1], np.int64),
        "steps": np.array([-1, 2], np.int64),
        "big": np.array([3, 4], np.int64),
        "twice": np.array([3, 1], np.int64),
        "at": np.array([[2], [0], [1]], np.int64),
        "square": draw(4, 4, seed=3),
    }
    used = {
        name: array
        for name, array in weights.items()
        if name in text.replace(",", " ").replace("(", " ").replace(")", " ").split()
    }
    model = graph(
        f"(float[N] x) => (double[A, B] y, float[N] z)"
        f"{{ {text} d1 = Cast<to: int = 11>(c) y = Abs(d1) z = Relu(x) }}",
        used,
    )
    assert set(ops(rewritten(model, fold_constants))) <= {"Abs", "Relu"}


def test_static_shape_becomes_a_constant() -> None:
    model = graph(
        "(float[2, 3, 4] x) => (int64[2] y, int64 n)"
        "{ s = Shape<start: int = 1>(x) y = Abs(s) m = Size(x) n = Abs(m) }"
    )
    assert ops(rewritten(model, fold_constants)) == {"Abs": 2}


@given(a=st.integers(-20, 20), b=st.integers(-5, 5).filter(bool))
def test_integer_division_truncates(a: int, b: int) -> None:
    model = graph(
        "(float[N] x) => (int64 y, float[N] z) { q = Div(a, b) y = Abs(q) z = Relu(x) }",
        {"a": np.int64(a), "b": np.int64(b)},
    )
    after = model.clone()
    fold_constants(after.graph)
    value = after.graph[0].inputs[0]
    assert value.const_value.numpy() == int(a / b)


def test_leaves_alone_a_dynamic_shape() -> None:
    declined(graph("(float[N, 3] x) => (int64[2] y) { s = Shape(x) y = Abs(s) }"), fold_constants)


def test_leaves_alone_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ELEMENTS", 10)
    text = (
        "(float[N] x) => (float[A] y, float[N] z) { c = ConstantOfShape(s) y = Abs(c) z = Relu(x) }"
    )
    declined(graph(text, {"s": np.array([11], np.int64)}), fold_constants)


def test_an_absurd_constant_of_shape_costs_nothing() -> None:
    text = (
        "(float[N] x) => (float[A] y, float[N] z) { c = ConstantOfShape(s) y = Abs(c) z = Relu(x) }"
    )
    declined(graph(text, {"s": np.array([2**34], np.int64)}), fold_constants)


def test_leaves_alone_random_numbers() -> None:
    text = (
        "(float[N] x) => (float[3] y, float[N] z)"
        "{ c = RandomNormal<shape: ints = [3]>() y = Abs(c) z = Relu(x) }"
    )
    declined(graph(text), fold_constants)
