"""y[o] = sum of x[i] W[k] over i s + k d = o + p, as a convolution and a shuffle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import declined, draw, feeds_for, graph, ops, rewritten

from ptq.passes.equivalence import largest_difference
from ptq.passes.expand_conv_transpose import expand_conv_transpose


def model_of(attributes: str, weight: tuple[int, ...], spatial: str, bias: bool = True):
    count = len(weight) - 2
    outputs = ", ".join("ABC"[:count])
    groups = 2 if "group: int = 2" in attributes else 1
    inputs = "x, w, b" if bias else "x, w"
    return graph(
        f"(float[N, {weight[0]}, {spatial}] x) => (float[N, {weight[1] * groups}, {outputs}] y)"
        f"{{ y = ConvTranspose<{attributes}>({inputs}) }}",
        {"w": draw(*weight), **({"b": draw(weight[1] * groups)} if bias else {})},
    )


@pytest.mark.parametrize(
    ("attributes", "weight", "expected"),
    [
        ("strides: ints = [2, 2]", (4, 3, 2, 2), {"Conv", "DepthToSpace"}),
        (
            "strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]",
            (4, 3, 4, 4),
            {"Conv", "DepthToSpace", "Slice"},
        ),
        (
            "strides: ints = [2, 2], pads: ints = [1, 1, 1, 1], output_padding: ints = [1, 1]",
            (4, 3, 3, 3),
            {"Conv", "DepthToSpace", "Slice"},
        ),
        ("strides: ints = [3, 3], group: int = 2", (4, 3, 2, 2), {"Conv", "DepthToSpace"}),
        ("pads: ints = [1, 1, 1, 1]", (4, 3, 3, 3), {"Conv"}),
        (
            "dilations: ints = [2, 2], strides: ints = [2, 2]",
            (4, 3, 3, 3),
            {"Conv", "DepthToSpace"},
        ),
    ],
)
@pytest.mark.parametrize("spatial", ["5, 4", "H, W"])
def test_two_dimensions(
    attributes: str, weight: tuple[int, ...], expected: set[str], spatial: str
) -> None:
    after = rewritten(model_of(attributes, weight, spatial), expand_conv_transpose)
    assert set(ops(after)) - {"Slice"} == expected - {"Slice"}
    assert ops(after)["Conv"] == 1
    if "pads" not in attributes:
        assert set(ops(after)) <= expected | {"Slice"}


def test_kernel_two_stride_two_needs_no_crop() -> None:
    after = rewritten(
        model_of("strides: ints = [2, 2]", (4, 3, 2, 2), "H, W"), expand_conv_transpose
    )
    assert ops(after) == {"Conv": 1, "DepthToSpace": 1}


def test_unequal_strides_use_reshape() -> None:
    after = rewritten(
        model_of("strides: ints = [2, 3]", (4, 3, 3, 3), "5, 4", bias=False), expand_conv_transpose
    )
    assert set(ops(after)) <= {"Conv", "Reshape", "Transpose", "Slice"}


def test_one_dimension() -> None:
    model = model_of("strides: ints = [2], pads: ints = [1, 1]", (4, 3, 4), "7")
    assert "ConvTranspose" not in ops(rewritten(model, expand_conv_transpose))


@pytest.mark.parametrize("same", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_padding(same: str) -> None:
    model = model_of(f'strides: ints = [2, 2], auto_pad: string = "{same}"', (4, 3, 3, 3), "5, 4")
    assert "ConvTranspose" not in ops(rewritten(model, expand_conv_transpose))


def test_output_shape() -> None:
    model = model_of("strides: ints = [2, 2], output_shape: ints = [10, 8]", (4, 3, 3, 3), "5, 4")
    assert "ConvTranspose" not in ops(rewritten(model, expand_conv_transpose))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_geometry(data: st.DataObject) -> None:
    kernel = [data.draw(st.integers(1, 5)) for _ in range(2)]
    strides = [data.draw(st.integers(1, 4)) for _ in range(2)]
    dilations = [data.draw(st.integers(1, 3)) for _ in range(2)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [data.draw(st.integers(2, 6)) for _ in range(2)]
    pads = [data.draw(st.integers(0, min(4, r - 1))) for r in reach * 2]
    extra = [data.draw(st.integers(0, s - 1)) for s in strides]
    outputs = [
        (n - 1) * s + r + e - b - a
        for n, s, r, e, b, a in zip(sizes, strides, reach, extra, pads[:2], pads[2:], strict=True)
    ]
    if min(outputs) < 1:
        return
    model = model_of(
        f"strides: ints = {strides}, dilations: ints = {dilations}, pads: ints = {pads}, "
        f"output_padding: ints = {extra}, group: int = 2",
        (4, 3, *kernel),
        f"{sizes[0]}, {sizes[1]}",
    )
    after = model.clone()
    expand_conv_transpose(after.graph)
    assert "ConvTranspose" not in ops(after)
    assert largest_difference(model, after, feeds_for(model)).relative <= 1e-5


def test_leaves_alone_unknown_sizes_with_unequal_strides() -> None:
    declined(model_of("strides: ints = [2, 3]", (4, 3, 3, 3), "H, W"), expand_conv_transpose)


def test_leaves_alone_a_computed_weight() -> None:
    model = graph(
        "(float[N, 4, 5, 4] x, float[4, 3, 2, 2] w) => (float[N, 3, 6, 5] y)"
        "{ y = ConvTranspose(x, w) }"
    )
    declined(model, expand_conv_transpose)
