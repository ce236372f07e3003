"""And with True and Or with False are Expand."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.drop_neutral_tests import drop_neutral_tests


def text(node: str) -> str:
    ends = "t = Cast<to = 9>(x)", "y = Cast<to = 1>(b)"
    return f"(float[N, 1, 3] x) => (float[A, B, C] y) {{ {ends[0]} b = {node} {ends[1]} }}"


@pytest.mark.parametrize(
    ("node", "array"),
    [
        ("And(t, c)", np.ones((4, 1), np.bool_)),
        ("And(c, t)", np.ones((1, 4, 3), np.bool_)),
        ("Or(t, c)", np.zeros((), np.bool_)),
    ],
)
def test_expands(node: str, array: np.ndarray) -> None:
    after = rewritten(graph(text(node), {"c": array}), drop_neutral_tests)
    assert ops(after) == {"Cast": 2, "Expand": 1}


@pytest.mark.parametrize(
    ("node", "array"),
    [("And(t, c)", np.array([True, False, True])), ("Or(t, c)", np.ones(3, np.bool_))],
)
def test_leaves_alone_what_decides(node: str, array: np.ndarray) -> None:
    declined(graph(text(node), {"c": array}), drop_neutral_tests)
