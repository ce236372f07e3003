"""auto_pad as numbers: out = ceil(in / stride)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import declined, draw, feeds_for, graph, rewritten

from ptq.passes.equivalence import largest_difference
from ptq.passes.write_pads import write_pads


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    "layer",
    [
        "Conv<strides: ints = [2, 1], AUTO>(x, w)",
        "MaxPool<kernel_shape: ints = [3, 2], strides: ints = [2, 2], AUTO>(x)",
        "AveragePool<kernel_shape: ints = [2, 3], strides: ints = [1, 2], AUTO>(x)",
    ],
)
def test_writes_numbers(auto: str, layer: str) -> None:
    text = layer.replace("AUTO", f'auto_pad: string = "{auto}"')
    weights = {"w": draw(3, 3, 3, 2)} if "w)" in layer else {}
    model = graph(f"(float[N, 3, 7, 6] x) => (float[N, 3, A, B] y) {{ y = {text} }}", weights)
    after = rewritten(model, write_pads)
    assert "auto_pad" not in after.graph[0].attributes


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_same_agrees_with_onnxruntime(data: st.DataObject) -> None:
    size, kernel = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    stride = data.draw(st.integers(1, kernel))
    auto = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    model = graph(
        f"(float[N, 2, {size}] x) => (float[N, 3, A] y)"
        f'{{ y = Conv<strides: ints = [{stride}], auto_pad: string = "{auto}">(x, w) }}',
        {"w": draw(3, 2, kernel)},
    )
    after = model.clone()
    assert write_pads(after.graph) == 1
    assert largest_difference(model, after, feeds_for(model)).relative <= 1e-6


def test_leaves_alone_unknown_sizes_and_numbers() -> None:
    head = "(float[N, 3, H, W] x) => (float[N, 3, A, B] y)"
    same = '{ y = Conv<auto_pad: string = "SAME_UPPER">(x, w) }'
    declined(graph(f"{head} {same}", {"w": draw(3, 3, 3, 2)}), write_pads)
    declined(
        graph(f"{head} {{ y = Conv<pads: ints = [1, 1, 1, 1]>(x, w) }}", {"w": draw(3, 3, 3, 2)}),
        write_pads,
    )
