"""Operands without elements are left out of a Concat."""

from __future__ import annotations

import numpy as np
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.drop_empty import drop_empty
from ptq.passes.prepare import prepare


def test_padding_that_is_empty() -> None:
    """A head that fills up to a length that the network has already."""
    model = graph(
        "(float[N, 3, 4] x) => (float[N, 6, 4] y) {"
        " n = Shape<start=0, end=1>(x) s = Concat<axis=0>(n, rest) p = ConstantOfShape(s)"
        " f = Mul(p, low) y = Concat<axis=-2>(f, x, f, x) }",
        {"rest": np.array([0, 4]), "low": np.float32(-1e9)},
    )
    after = rewritten(model, drop_empty)
    assert ops(after) == {"Concat": 1}
    assert [x.name for x in next(iter(after.graph)).inputs if x is not None] == ["x", "x"]


def test_a_concat_of_one_operand_goes() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Concat<axis=1>(a, e) y = Exp(b) }",
        {"e": np.zeros((1, 0), np.float32)},
    )
    assert ops(prepare(model)) == {"Relu": 1, "Exp": 1}


def test_leaves_alone_what_may_have_elements() -> None:
    declined(
        graph(
            "(float[N, 4] x, float[M, 4] z) => (float[K, 4] y) { y = Concat<axis=0>(x, z, e) }",
            {"e": np.zeros((1, 4), np.float32)},
        ),
        drop_empty,
    )
