"""split_norms: additions get a norm of their own, and nothing changes in value."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.passes.split_norms import split_norms
from tests.passes.small_graphs import declined, draw, graph, ops, rewritten

WEIGHTS = {"s": np.ones(4, np.float32), "b": draw(4), "w": draw(4, 4)}
HEAD = "(float[N, 3, 4] x) => (float[N, 3, 4] y)"
NORM = "n = LayerNormalization(x, s, b)"


def test_the_shortcut_reads_a_copy() -> None:
    model = graph(f"{HEAD} {{ {NORM} m = MatMul(n, w) y = Add(m, n) }}", WEIGHTS)
    after = rewritten(model, split_norms)
    assert ops(after) == {"LayerNormalization": 2, "MatMul": 1, "Add": 1}
    readers = [
        sorted(user.op_type for user in node.outputs[0].consumers())
        for node in after.graph
        if node.op_type == "LayerNormalization"
    ]
    assert sorted(readers) == [["Add"], ["MatMul"]]


@pytest.mark.parametrize(
    "body",
    [f"{NORM} y = MatMul(n, w)", f"{NORM} y = Add(n, x)", f"{NORM} y = Add(n, n)"],
    ids=["a product only", "an addition only", "one addition twice"],
)
def test_leaves_alone(body: str) -> None:
    declined(graph(f"{HEAD} {{ {body} }}", WEIGHTS), split_norms)
