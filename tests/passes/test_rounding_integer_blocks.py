"""Groups of integer weights: row scales times small integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

import ptq
from ptq.grid import Grid
from ptq.integer.reference import Reference
from ptq.passes.rounding.integer_blocks import largest_factor, split_scales
from tests.weights_only.networks import gated_network, inputs


@pytest.mark.parametrize(("bits", "factor"), [(4, 8), (3, 16), (2, 32)])
def test_factors_keep_weights_pair_safe(bits: int, factor: int) -> None:
    grid = Grid(bits)
    zero_point = np.array([grid.middle, grid.size - 1, 0])
    found = largest_factor(grid, zero_point, 64)
    weights = found[:, None] * (np.arange(grid.size) - zero_point[:, None])
    assert np.abs(weights).max() <= 64
    assert found[0] == factor


def test_scales_are_split_to_the_nearest_products() -> None:
    scale = np.random.default_rng(0).uniform(0.2, 1.0, (50, 8))
    rows, factors = split_scales(scale, np.full(50, 8))
    assert factors.min() >= 1
    assert factors.max() <= 8
    ratio = rows[:, None] * factors / scale
    assert np.abs(np.log(ratio)).max() < np.log(1.5)  # 1 to 2 is the coarsest step
    assert np.square(np.log(ratio)).mean() < 0.01


def test_scales_that_are_multiples_are_split_exactly() -> None:
    scale = 0.37 * np.array([[7.0, 3, 1, 5], [6, 6, 2, 4]])
    rows, factors = split_scales(scale, np.full(2, 8))
    np.testing.assert_allclose(rows[:, None] * factors, scale)


@pytest.fixture(scope="module")
def grouped() -> ptq.Result:
    return quantized(16)


def quantized(group_size: int | None) -> ptq.Result:
    recipe = ptq.Recipe.preset("w3a8").replace(group_size=group_size, effort="fast", edge_bits=None)
    return ptq.quantize(spread_network(), [inputs(256)], recipe)


def spread_network() -> ModelProto:
    """Groups of inputs whose weights differ in size, as they do behind norms."""
    proto = gated_network()
    for tensor in proto.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        if array.ndim == 2 and tensor.name != "head.weight":
            array *= np.repeat([0.3, 1.0, 0.5], 16)[: len(array), None]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def test_onnxruntime_gives_the_codes_of_the_reference(grouped: ptq.Result) -> None:
    multipliers = [w.block_multiplier for w in grouped.plan.weights.values()]
    assert all(m is not None and m.dtype == np.int8 for m in multipliers)
    feed = {"x": inputs(64, seed=2)}
    session = ort.InferenceSession(ir.to_proto(grouped.model).SerializeToString())
    expected = Reference(grouped.program).run(feed)["y"]
    np.testing.assert_array_equal(session.run(None, feed)[0], expected)


def test_groups_are_nearer_than_channels(grouped: ptq.Result) -> None:
    feed = {"x": inputs(256, seed=2)}
    wanted = ort.InferenceSession(ir.to_proto(grouped.float_model).SerializeToString()).run(
        None, feed
    )[0]

    def error(result: ptq.Result) -> float:
        return float(np.square(Reference(result.program).run(feed)["y"] - wanted).sum())

    assert error(grouped) < 0.8 * error(quantized(None))
