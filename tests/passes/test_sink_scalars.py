"""sink_scalars: factors of a MatMul's operands move behind it and become one."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.passes.equivalence import largest_difference
from ptq.passes.sink_scalars import sink_scalars
from tests.passes.small_graphs import declined, graph, ops, rewritten

CONSTANTS = {"c": np.float32(0.5), "d": np.float32(4), "v": np.float32([1, 2, 3, 4])}
HEAD = "(float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, A, B] y)"
TURN = "Transpose<perm: ints = [0, 2, 1]>"


@pytest.mark.parametrize(
    "body",
    [
        f"a = Mul(x, c) t = {TURN}(z) y = MatMul(a, t)",
        f"a = Mul(c, x) e = Div(z, d) t = {TURN}(e) y = MatMul(a, t)",
        f"t = {TURN}(z) b = Mul(t, c) m = MatMul(x, b) y = Mul(m, d)",
    ],
    ids=["one", "both, one moved", "a factor behind already"],
)
def test_one_factor_is_left_behind_the_product(body: str) -> None:
    before = graph(f"{HEAD} {{ {body} }}", CONSTANTS)
    after = rewritten(before, sink_scalars)
    assert ops(after) == {"Transpose": 1, "MatMul": 1, "Mul": 1}
    assert [n.op_type for n in after.graph][-1] == "Mul"
    rng = np.random.default_rng(0)
    feeds = {k: rng.normal(size=(2, 3, 4)).astype(np.float32) for k in "xz"}
    assert largest_difference(before, after, feeds).relative < 1e-6


@pytest.mark.parametrize(
    "body",
    [
        f"a = Mul(x, v) t = {TURN}(z) y = MatMul(a, t)",
        f"a = Mul(x, n) t = {TURN}(z) y = MatMul(a, t)",
        f"a = Mul(x, c) t = {TURN}(a) y = MatMul(a, t)",
        f"a = Div(c, x) t = {TURN}(z) y = MatMul(a, t)",
    ],
    ids=["a vector", "negative", "read twice", "divides by x"],
)
def test_leaves_alone(body: str) -> None:
    declined(graph(f"{HEAD} {{ {body} }}", {**CONSTANTS, "n": np.float32(-1)}), sink_scalars)
