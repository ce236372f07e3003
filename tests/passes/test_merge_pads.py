"""Conv(Pad(x)) = Conv(x) with larger pads."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, draw, graph, ops, rewritten

from ptq.passes.merge_pads import merge_pads


def pads(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def conv_after(pad: str, attributes: str = "") -> str:
    return (
        "(float[N, 4, 5, 5] x) => (float[N, 6, A, B] y)"
        f"{{ h = {pad} y = Conv<{attributes}>(h, w) }}".replace("<>", "")
    )


def test_into_conv_adds_to_its_own_pads() -> None:
    model = graph(
        conv_after("Pad(x, p)", "pads: ints = [1, 0, 0, 1], strides: ints = [2, 2]"),
        {"p": pads(0, 0, 0, 1, 0, 0, 2, 1), "w": draw(6, 4, 3, 3)},
    )
    after = rewritten(model, merge_pads)
    assert ops(after) == {"Conv": 1}
    assert after.graph[0].attributes["pads"].as_ints() == (1, 1, 2, 2)


def test_with_axes_and_an_explicit_zero() -> None:
    model = graph(
        conv_after("Pad(x, p, zero, axes)"),
        {
            "p": pads(1, 2),
            "zero": np.zeros((), np.float32),
            "axes": np.array([-1], np.int64),
            "w": draw(6, 4, 3, 3),
        },
    )
    after = rewritten(model, merge_pads)
    assert after.graph[0].attributes["pads"].as_ints() == (0, 1, 0, 2)


def test_into_average_pool_counts_the_padding() -> None:
    model = graph(
        "(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y)"
        "{ h = Pad(x, p) y = AveragePool<kernel_shape: ints = [3, 3]>(h) }",
        {"p": pads(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    after = rewritten(model, merge_pads)
    assert after.graph[0].attributes["count_include_pad"].as_int() == 1


def test_pad_stays_for_its_other_reader() -> None:
    model = graph(
        "(float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y, float[N, 4, 7, 7] z)"
        "{ h = Pad(x, p) y = Conv(h, w) z = Relu(h) }",
        {"p": pads(0, 0, 1, 1, 0, 0, 1, 1), "w": draw(6, 4, 3, 3)},
    )
    assert ops(rewritten(model, merge_pads)) == {"Pad": 1, "Conv": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("pad", "numbers"),
    [
        ("Pad(x, p, one)", (0, 0, 1, 1, 0, 0, 1, 1)),
        ('Pad<mode: string = "reflect">(x, p)', (0, 0, 1, 1, 0, 0, 1, 1)),
        ('Pad<mode: string = "edge">(x, p)', (0, 0, 1, 1, 0, 0, 1, 1)),
        ("Pad(x, p)", (0, 0, -1, 1, 0, 0, 1, 1)),
        ("Pad(x, p)", (1, 0, 1, 1, 0, 0, 1, 1)),
    ],
    ids=["not zero", "reflect", "edge", "negative", "batch"],
)
def test_leaves_alone(pad: str, numbers: tuple[int, ...]) -> None:
    weights = {"p": pads(*numbers), "w": draw(6, 4, 3, 3), "one": np.ones((), np.float32)}
    declined(graph(conv_after(pad).replace("[N, 6", "[M, 6"), weights), merge_pads)


def test_leaves_alone_channel_pads() -> None:
    # The option-A shortcut of a CIFAR resnet.
    model = graph(
        "(float[N, 2, 5, 5] x) => (float[N, 6, 3, 3] y) { h = Pad(x, p) y = Conv(h, w) }",
        {"p": pads(0, 1, 0, 0, 0, 1, 0, 0), "w": draw(6, 4, 3, 3)},
    )
    declined(model, merge_pads)


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape: ints = [3, 3], ceil_mode: int = 1",
        "kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]",
        'kernel_shape: ints = [3, 3], auto_pad: string = "SAME_UPPER"',
        "kernel_shape: ints = [1, 1]",
    ],
    ids=["ceil_mode", "uncounted pads", "auto_pad", "pads as large as the kernel"],
)
def test_leaves_alone_pools(attributes: str) -> None:
    model = graph(
        "(float[N, 4, 5, 5] x) => (float[N, 4, A, B] y)"
        f"{{ h = Pad(x, p) y = AveragePool<{attributes}>(h) }}",
        {"p": pads(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    declined(model, merge_pads)
