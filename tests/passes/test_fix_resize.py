"""Resize's sizes without the batch are constant."""

from __future__ import annotations

import numpy as np
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.fix_resize import fix_resize
from ptq.passes.write_resize_as_matmul import write_resize_as_matmul

TEXT = (
    "(float[N, 3, 5, 4] x) => (float[N, 3, 10, 8] y)"
    "{ s = Shape(x) h = Slice(s, lo, hi) t = Concat<axis: int = 0>(h, size) "
    '  y = Resize<mode: string = "MODE">(x, , , t) }'
)
WEIGHTS = {
    "lo": np.array([0], np.int64),
    "hi": np.array([2], np.int64),
    "size": np.array([10, 8], np.int64),
}


def test_batch_stays_dynamic() -> None:
    after = rewritten(graph(TEXT.replace("MODE", "nearest"), WEIGHTS), fix_resize)
    assert ops(after) == {"Resize": 1}
    assert after.graph[0].attributes["axes"].as_ints() == (2, 3)


def test_a_linear_one_can_then_be_a_matmul() -> None:
    after = rewritten(graph(TEXT.replace("MODE", "linear"), WEIGHTS), fix_resize)
    assert set(ops(rewritten(after, write_resize_as_matmul, 3e-5))) == {"MatMul", "Transpose"}


def test_leaves_alone_a_resized_batch() -> None:
    model = graph(
        "(float[N, 3, 5, 4] x, int64[1] m) => (float[A, 3, 10, 8] y)"
        '{ t = Concat<axis: int = 0>(m, size) y = Resize<mode: string = "nearest">(x, , , t) }',
        {"size": np.array([3, 10, 8], np.int64)},
    )
    declined(model, fix_resize)
