"""Reshape(x, Concat(Shape(x)[0], [64])) = Reshape(x, [0, 64])."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.fix_reshape import fix_reshape

ZERO, ONE, REST = np.array(0, np.int64), np.array([0], np.int64), np.array([-1], np.int64)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(np.array([-1], np.int64), (0, 12)), (np.array([4, 3], np.int64), (0, 4, 3))],
)
def test_flatten_written_with_shape(tail: np.ndarray, expected: tuple[int, ...]) -> None:
    outputs = ", ".join("ABCD"[: len(expected) - 1])
    model = graph(
        f"(float[N, 3, 2, 2] x) => (float[N, {outputs}] y)"
        "{ s = Shape(x) b = Gather(s, i) u = Unsqueeze(b, a) t = Concat<axis: int = 0>(u, tail)"
        "  y = Reshape(x, t) }",
        {"i": ZERO, "a": ONE, "tail": tail},
    )
    after = rewritten(model, fix_reshape)
    assert ops(after) == {"Reshape": 1}
    assert tuple(after.graph[0].inputs[1].const_value.numpy()) == expected


def test_slice_and_shape_attributes() -> None:
    model = graph(
        "(float[N, 3, 4] x) => (float[A, B] y)"
        "{ s = Shape<end: int = 2>(x) h = Slice(s, lo, hi) t = Concat<axis: int = 0>(h, tail)"
        "  y = Reshape(x, t) }",
        {"lo": ONE, "hi": np.array([1], np.int64), "tail": REST},
    )
    assert ops(rewritten(model, fix_reshape)) == {"Reshape": 1}


def test_a_dimension_at_another_place_becomes_minus_one() -> None:
    model = graph(
        "(float[N, 3, 4] x) => (float[12, M] y)"
        "{ s = Shape(x) b = Gather(s, i) t = Concat<axis: int = 0>(head, b) y = Reshape(x, t) }",
        {"i": ONE, "head": np.array([12], np.int64)},
    )
    after = rewritten(model, fix_reshape)
    assert tuple(after.graph[0].inputs[1].const_value.numpy()) == (12, -1)


def test_minus_one_that_is_the_batch_becomes_zero() -> None:
    model = graph(
        "(float[N, 3, 4] x) => (float[M, 12] y) { y = Reshape(x, t) }",
        {"t": np.array([-1, 12], np.int64)},
    )
    after = rewritten(model, fix_reshape)
    assert tuple(after.graph[0].inputs[1].const_value.numpy()) == (0, 12)


def test_a_fixed_batch_becomes_zero() -> None:
    model = graph(
        "(float[2, 3, 4] x) => (float[2, 12] y) { y = Reshape(x, t) }",
        {"t": np.array([2, -1], np.int64)},
    )
    after = rewritten(model, fix_reshape)
    assert tuple(after.graph[0].inputs[1].const_value.numpy()) == (0, -1)


def test_leaves_alone_a_first_number_that_is_not_the_batch() -> None:
    declined(
        graph(
            "(float[2, 3, 4] x) => (float[6, 4] y) { y = Reshape(x, t) }",
            {"t": np.array([6, 4], np.int64)},
        ),
        fix_reshape,
    )


def test_leaves_alone_minus_one_that_is_not_the_batch() -> None:
    model = graph(
        "(float[N, 3, 4] x) => (float[M, 4] y) { y = Reshape(x, t) }",
        {"t": np.array([-1, 4], np.int64)},
    )
    declined(model, fix_reshape)


def test_leaves_alone_two_unknown_entries() -> None:
    model = graph(
        "(float[N, M, 4] x) => (float[A, B, 4] y)"
        "{ s = Shape(x) t = Gather(s, i) y = Reshape(x, t) }",
        {"i": np.array([1, 0, 2], np.int64)},
    )
    declined(model, fix_reshape)


def test_leaves_alone_a_target_from_outside() -> None:
    declined(
        graph("(float[N, 4] x, int64[2] t) => (float[A, B] y) { y = Reshape(x, t) }"), fix_reshape
    )
