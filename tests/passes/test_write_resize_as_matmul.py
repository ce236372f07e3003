"""A linear or cubic Resize is y = A x along each axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import declined, feeds_for, graph, ops, rewritten

from ptq.passes.equivalence import largest_difference
from ptq.passes.write_resize_as_matmul import (
    Interpolation,
    interpolation_matrix,
    write_resize_as_matmul,
)

MODES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]

FLOAT32_PLACES = 3e-5
"""onnxruntime computes the places u(i) in float32: an error of 1e-6 of a pixel, times a slope."""


def resize(
    inputs: str, attributes: str, spatial: str = "5, 4", **constants: np.ndarray
) -> ir.Model:
    outputs = ", ".join("ABC"[: spatial.count(",") + 1])
    return graph(
        f"(float[N, 3, {spatial}] x) => (float[N, 3, {outputs}] y)"
        f"{{ y = Resize<{attributes}>({inputs}) }}",
        constants,
    )


def linear(mode: str, extra: str = "") -> str:
    return f'mode: string = "linear", coordinate_transformation_mode: string = "{mode}"{extra}'


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 3.0), (0.5, 1.0)])
def test_scales(mode: str, scales: tuple[float, float]) -> None:
    model = resize("x, , s", linear(mode), s=np.array([1, 1, *scales], np.float32))
    after = rewritten(model, write_resize_as_matmul, FLOAT32_PLACES)
    assert set(ops(after)) <= {"MatMul", "Transpose"}
    assert ops(after)["MatMul"] == sum(scale != 1 for scale in scales)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(10, 8), (7, 9), (1, 3), (5, 8)])
def test_sizes_with_axes(mode: str, sizes: tuple[int, int]) -> None:
    model = resize("x, , , s", linear(mode, ", axes: ints = [2, 3]"), s=np.array(sizes, np.int64))
    rewritten(model, write_resize_as_matmul, FLOAT32_PLACES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(10, 8), (7, 9), (3, 2), (5, 8)])
@pytest.mark.parametrize(
    "more", ["", ", cubic_coeff_a: float = -0.5", ", exclude_outside: int = 1"]
)
def test_cubic(mode: str, sizes: tuple[int, int], more: str) -> None:
    attributes = linear(mode, f"{more}, axes: ints = [2, 3]").replace("linear", "cubic")
    model = resize("x, , , s", attributes, s=np.array(sizes, np.int64))
    after = rewritten(model, write_resize_as_matmul, FLOAT32_PLACES)
    assert set(ops(after)) <= {"MatMul", "Transpose"}


def test_one_dimension() -> None:
    model = resize("x, , s", linear("half_pixel"), "6", s=np.array([1, 1, 2], np.float32))
    assert ops(rewritten(model, write_resize_as_matmul, FLOAT32_PLACES)) == {"MatMul": 1}


@settings(deadline=None, max_examples=40)
@given(before=st.integers(1, 9), after=st.integers(1, 20), mode=st.sampled_from(MODES))
def test_rows_are_weights(before: int, after: int, mode: str) -> None:
    matrix = interpolation_matrix(before, after, after / before, Interpolation("linear", mode))
    assert matrix.shape == (after, before)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert np.all(matrix >= 0)
    assert np.all(np.count_nonzero(matrix, axis=1) <= 2)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), mode=st.sampled_from(MODES))
def test_any_size_agrees_with_onnxruntime(data: st.DataObject, mode: str) -> None:
    before = [data.draw(st.integers(1, 7)) for _ in range(2)]
    after = [data.draw(st.integers(1, 12)) for _ in range(2)]
    model = resize(
        "x, , , s",
        linear(mode, ", axes: ints = [2, 3]"),
        f"{before[0]}, {before[1]}",
        s=np.array(after, np.int64),
    )
    result = model.clone()
    write_resize_as_matmul(result.graph)
    if before != after:
        assert largest_difference(model, result, feeds_for(model)).relative <= FLOAT32_PLACES


@pytest.mark.parametrize(
    ("attributes", "spatial"),
    [
        ('mode: string = "nearest"', "5, 4"),
        (linear("half_pixel", ", antialias: int = 1"), "5, 4"),
        (linear("half_pixel"), "H, W"),
    ],
    ids=["nearest", "antialias", "unknown sizes"],
)
def test_leaves_alone(attributes: str, spatial: str) -> None:
    model = resize("x, , s", attributes, spatial, s=np.array([1, 1, 2, 2], np.float32))
    declined(model, write_resize_as_matmul)
