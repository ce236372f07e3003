"""Depthwise convolutions by four rows at a time: tiles, and whole modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.kernels.quad_window import Tile, Window
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.quad_tiles import quad_tile
from tests.graphs import GraphBuilder
from tests.kernels.test_depthwise_quads import TARGETS, skip_without
from tests.targets.tvm.test_module import assert_same_codes

RECIPE = Recipe.preset("w8a8").replace(effort="fast", rounding="nearest", bias_correction=False)


def test_rows_that_fill_a_quad_are_chosen() -> None:
    """Two windows of three rows are four rows."""
    tile = quad_tile("avx512vnni", Window((3, 3), (1, 1), (1, 1)), 56, 56)
    assert (tile.rows, tile.columns) == (2, 28)


def test_tiles_are_no_larger_than_the_image() -> None:
    assert quad_tile("avxvnni", Window((3, 3), (1, 1), (1, 1)), 1, 1) == Tile(1, 1, 1)


def test_strips_of_wide_windows_are_narrow() -> None:
    """[columns + 30, 8 quads, 4 vectors of 64 bytes] are 72 kB even for few columns."""
    tile = quad_tile("avx512vnni", Window((31, 31), (1, 1), (1, 1)), 56, 56)
    assert tile.columns == tile.pixels


@pytest.mark.parametrize("isa", ["avx512vnni", "avxvnni"])
@pytest.mark.parametrize(
    ("channels", "attributes"),
    [
        (16, {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
        (40, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        (96, {"pads": [0, 1, 0, 1], "kernel_shape": [1, 3]}),
        (70, {"pads": [3, 0], "kernel_shape": [4], "strides": [2]}),
    ],
)
def test_modules_give_the_reference_s_codes(
    isa: str, channels: int, attributes: dict[str, list[int]], tmp_path: Path
) -> None:
    skip_without(isa)
    taps = attributes.get("kernel_shape", [3, 3])
    shape = (channels, 9, 11)[: 1 + len(taps)]
    b = GraphBuilder(np.random.default_rng(channels))
    weight = b.weight(channels, 1, *taps)
    y = b.node("Conv", ["x", weight, b.bias(channels)], group=channels, **attributes)
    y = b.node("Flatten", [b.node("GlobalAveragePool", [b.node("Relu", [y])])])
    model = b.model({"x": shape}, {y: (channels,)})
    x = np.random.default_rng(2).normal(size=(8, *shape)).astype(np.float32)
    program = quantize(model, [{"x": x}], RECIPE).program
    compiled = assert_same_codes(program, {"x": x[:2]}, tmp_path, target=TARGETS[isa])
    assert "DepthwiseQuads" in {name for names in compiled.kernels.values() for name in names}
