"""Transpositions one after another, and around reshapes that fold leading axes, are one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.merge_transposes import merge_transposes


def shape(*sizes: int) -> np.ndarray:
    return np.array(sizes, np.int64)


def test_two_become_one_and_undone_ones_none() -> None:
    two = graph(
        "(float[N, 4, 5] x) => (float[A, B, C] y)"
        "{ h = Transpose<perm: ints = [1, 0, 2]>(x) y = Transpose<perm: ints = [2, 0, 1]>(h) }",
        {},
    )
    after = rewritten(two, merge_transposes)
    assert ops(after) == {"Transpose": 1}
    assert after.graph[0].attributes["perm"].as_ints() == (2, 1, 0)
    undone = graph(
        "(float[N, 4, 5] x) => (float[N, 4, 5] y){ h = Transpose(x) g = Transpose(h) y = Relu(g) }",
        {},
    )
    assert ops(rewritten(undone, merge_transposes)) == {"Relu": 1}


def test_the_inner_one_stays_for_its_other_reader() -> None:
    model = graph(
        "(float[2, 4, 5] x) => (float[2, 4, 5] y, float[4, 2, 5] z)"
        "{ h = Transpose<perm: ints = [1, 0, 2]>(x) y = Transpose<perm: ints = [1, 0, 2]>(h)"
        "  g = Relu(y) z = Relu(h) y2 = Relu(g) }",
        {},
    )
    after = rewritten(model, merge_transposes)
    assert ops(after)["Transpose"] >= 1


def keys(unfolded: str, *, inner: str = "[0, 2, 1]") -> str:
    return (
        f"(float[B, 3, L, 4] x) => (float[{unfolded}] y) {{ s = Shape(x)"
        "  b = Slice(s, zero, two) l = Slice(s, two, three)"
        "  fold = Concat<axis: int = 0>(minus, l, four)"
        "  unfold = Concat<axis: int = 0>(b, four, l)"
        f"  h = Reshape(x, fold) t = Transpose<perm: ints = {inner}>(h)"
        "  u = Reshape(t, unfold) y = Relu(u) }"
    )


NUMBERS = {
    "zero": shape(0),
    "two": shape(2),
    "three": shape(3),
    "four": shape(4),
    "minus": shape(-1),
}


def test_around_a_fold_of_leading_axes_with_sizes_known_at_run_time() -> None:
    after = rewritten(graph(keys("B, 3, 4, L"), NUMBERS), merge_transposes)
    assert ops(after) == {"Transpose": 1, "Relu": 1}
    assert after.graph[0].attributes["perm"].as_ints() == (0, 1, 3, 2)


def test_declines_what_is_folded_differently_or_unknown() -> None:
    unknown = graph(keys("B, 3, 4, L"), NUMBERS)
    folded = next(node for node in unknown.graph if node.op_type == "Reshape").outputs[0]
    folded.shape = ir.Shape([None, None, 4])
    declined(unknown, merge_transposes)
    folded.shape = None
    declined(unknown, merge_transposes)
    other = graph(
        "(float[2, 3, 6, 4] x) => (float[2, 3, 4, 6] y)"
        "{ h = Reshape(x, fold) t = Transpose<perm: ints = [0, 2, 1]>(h) u = Reshape(t, unfold)"
        "  y = Relu(u) }",
        {"fold": shape(6, 4, 6), "unfold": shape(2, 3, 4, 6)},
    )
    declined(other, merge_transposes)
