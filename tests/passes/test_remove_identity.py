"""Identity and Dropout compute nothing at inference."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.remove_identity import remove_identity


def test_inside_a_chain() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y)"
        "{ a = Relu(x) b = Identity(a) c, mask = Dropout(b) y = Exp(c) }"
    )
    assert ops(rewritten(model, remove_identity)) == {"Relu": 1, "Exp": 1}


def test_at_an_output_the_name_stays() -> None:
    model = graph("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Identity(a) }")
    after = rewritten(model, remove_identity)
    assert ops(after) == {"Relu": 1}
    assert after.graph.outputs[0].name == "y"


def test_unread_nodes_and_constants_go() -> None:
    model = graph(
        "(float[N, 4] x) => (float[N, 4] y) { a = Mul(x, c) b = Exp(a) y = Relu(x) }",
        {"c": np.float32(2)},
    )
    after = rewritten(model, remove_identity)
    assert ops(after) == {"Relu": 1}
    assert not after.graph.initializers


def test_leaves_alone_identity_from_input_to_output() -> None:
    declined(graph("(float[N] x) => (float[N] y) { y = Identity(x) }"), remove_identity)


def test_leaves_alone_identity_of_another_output() -> None:
    model = graph("(float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Identity(y) }")
    declined(model, remove_identity)


def test_leaves_alone_dropout_in_training() -> None:
    model = graph(
        "(float[N] x) => (float[N] y) { a, m = Dropout(x, r, t) y = Relu(a) }",
        {"r": np.float32(0.5), "t": np.bool_(True)},
    )
    declined(model, remove_identity)


@pytest.mark.parametrize(
    ("operands", "attributes"),
    [
        ("a, , ones", 'mode = "linear"'),
        ("a, , , sizes", "axes = [2, 3]"),
    ],
)
def test_a_resize_to_the_sizes_that_are_there(operands: str, attributes: str) -> None:
    text = (
        "(float[N, 2, 4, 5] x) => (float[N, 2, 4, 5] y)"
        f"{{ a = Relu(x) b = Resize<{attributes}>({operands}) y = Exp(b) }}"
    )
    arrays = {"ones": np.ones(4, np.float32), "sizes": np.array([4, 5])}
    model = graph(text, {name: array for name, array in arrays.items() if name in operands})
    assert ops(rewritten(model, remove_identity)) == {"Relu": 1, "Exp": 1}


def test_leaves_alone_a_resize_to_other_sizes() -> None:
    text = (
        "(float[N, 2, 4, 5] x) => (float[N, 2, 4, 10] y)"
        '{ y = Resize<axes = [2, 3], mode = "linear">(x, , , sizes) }'
    )
    declined(graph(text, {"sizes": np.array([4, 10])}), remove_identity)
