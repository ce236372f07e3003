"""Embeddings of an index that never changes are part of the table that they are added to."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.fold_embeddings import fold_embeddings

TABLES = {
    "words": draw(11, 4),
    "types": draw(2, 4, seed=1),
    "first": np.array([[1]], np.int64),
    "one": np.array([1], np.int64),
}
TYPES = "s = Shape(ids) i = Expand(first, s) t = Gather(types, i)"


@pytest.mark.parametrize("total", ["Add(w, t)", "Add(t, w)"])
def test_a_type_that_is_always_the_same_is_in_the_table_of_words(total: str) -> None:
    model = graph(
        f"(int64[N, T] ids) => (float[N, T, 4] y) {{ {TYPES} w = Gather(words, ids)"
        f"  h = {total} y = Relu(h) }}",
        TABLES,
    )
    after = rewritten(model, fold_embeddings)
    assert ops(after) == {"Gather": 1, "Relu": 1}
    (table,) = after.graph.initializers.values()
    wanted = TABLES["words"] + TABLES["types"][1]
    assert np.array_equal(table.const_value.numpy(), wanted)


def test_elsewhere_it_is_a_constant_row() -> None:
    model = graph(
        f"(int64[N, T] ids, float[N, T, 4] x) => (float[N, T, 4] y) {{ {TYPES} y = Add(x, t) }}",
        TABLES,
    )
    assert ops(rewritten(model, fold_embeddings)) == {"Add": 1}


def test_a_table_with_other_readers_keeps_its_rows() -> None:
    model = graph(
        "(int64[N, T] ids) => (float[N, T, 4] y, float[N, T, 4] z) { w = Gather(words, ids)"
        "  y = Add(w, row) z = Gather(words, ids) }",
        {"words": TABLES["words"], "row": draw(4)},
    )
    declined(model, fold_embeddings)


@pytest.mark.parametrize(
    "text",
    [
        f"(int64[N, T] ids, float[4] x) => (float[N, T, 4] y) {{ {TYPES} y = Add(x, t) }}",
        "(int64[N, T] ids, float[N, T, 4] x) => (float[N, T, 4] y)"
        "{ t = Gather(types, ids) y = Add(x, t) }",
        "(int64[N, 4] ids) => (float[N, 4, 4] y) { w = Gather(words, ids) y = Add(w, square) }",
    ],
)
def test_declines_what_the_sum_broadcasts_and_what_varies(text: str) -> None:
    declined(graph(text, {**TABLES, "square": draw(4, 4)}), fold_embeddings)
