"""AveragePool(x, count_include_pad=0) = AveragePool(x, count_include_pad=1) * mask."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_graphs import declined, graph, ops, rewritten

from ptq.passes.mask_average_pool import mask_average_pool


def pool(attributes: str, spatial: str = "7, 6") -> ir.Model:
    outputs = ", ".join("ABC"[: spatial.count(",") + 1])
    return graph(
        f"(float[N, 3, {spatial}] x) => (float[N, 3, {outputs}] y)"
        f"{{ y = AveragePool<{attributes}>(x) }}"
    )


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]",
        "kernel_shape: ints = [3, 2], pads: ints = [2, 0, 1, 1], strides: ints = [2, 1]",
        "kernel_shape: ints = [2, 2], dilations: ints = [2, 2], pads: ints = [1, 1, 1, 1]",
        'kernel_shape: ints = [3, 3], strides: ints = [2, 2], auto_pad: string = "SAME_UPPER"',
    ],
)
def test_padded_pool_gets_a_mask(attributes: str) -> None:
    assert ops(rewritten(pool(attributes), mask_average_pool)) == {"AveragePool": 1, "Mul": 1}


def test_one_dimension() -> None:
    model = pool("kernel_shape: ints = [3], pads: ints = [1, 1]", "7")
    assert ops(rewritten(model, mask_average_pool)) == {"AveragePool": 1, "Mul": 1}


def test_full_window_is_global() -> None:
    after = rewritten(pool("kernel_shape: ints = [7, 6]"), mask_average_pool)
    assert ops(after) == {"GlobalAveragePool": 1}


@pytest.mark.parametrize(
    ("attributes", "spatial"),
    [
        (
            "kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], count_include_pad: int = 1",
            "7, 6",
        ),
        ("kernel_shape: ints = [3, 3]", "7, 6"),
        ("kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]", "H, W"),
        (
            "kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], ceil_mode: int = 1, "
            "strides: ints = [2, 2]",
            "6, 6",
        ),
    ],
    ids=["counted", "no pads", "unknown sizes", "ceil_mode"],
)
def test_leaves_alone(attributes: str, spatial: str) -> None:
    declined(pool(attributes, spatial), mask_average_pool)
