"""Products of few rows: their tiles, and whole modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq.errors import MissingDependencyError
from ptq.kernels.packed_convolution import PackedConvolution, Tile
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm import fast
from ptq.targets.tvm.lowering import Lowering
from ptq.targets.tvm.vector_tiles import FEW_SUMS, TILES, vector_tile
from tests.graphs import GraphBuilder
from tests.targets.tvm.test_module import assert_same_codes

CPUS = ("x86-64-v3", "alderlake", "cascadelake", "sapphirerapids")
RECIPE = Recipe.preset("w4a8").replace(
    effort="fast", rounding="nearest", bias_correction=False, edge_bits=4
)
INPUTS, OUT = 256, 200


@pytest.mark.parametrize("isa", TILES)
def test_few_pixels_are_one_tile(isa: str) -> None:
    for pixels in range(1, FEW_SUMS[isa] + 1):
        tile = vector_tile(isa, 9, 1, pixels, large=True)
        assert tile.pixels == pixels
        assert 1 <= tile.vectors * pixels <= FEW_SUMS[isa]
    assert vector_tile(isa, 9, 1, FEW_SUMS[isa] + 1, large=True).pixels <= FEW_SUMS[isa]


def test_vectors_are_no_more_than_the_channels_fill() -> None:
    assert vector_tile("avx512vnni", 1, 1, 2, large=True) == Tile(2, 1, 4)


def test_small_weights_are_read_from_the_cache() -> None:
    """Sixteen pixels by one vector take half as long again there as six by four."""
    assert vector_tile("avx512vnni", 8, 1, 16, large=False) == Tile(6, 4, 2)


def test_rows_of_images_are_not_crossed() -> None:
    """Four rows of four: a tile of 16 pixels would be three quarters empty."""
    assert vector_tile("avx512vnni", 8, 4, 16, large=True).pixels < 16


@pytest.mark.parametrize("weights", ["auto", "packed"])
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("rows", [4, 13])
def test_modules_give_the_reference_s_codes(
    rows: int, cpu: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "LARGE_BYTES", INPUTS * OUT)
    b = GraphBuilder(np.random.default_rng(rows))
    y = b.node("Relu", [b.node("MatMul", ["x", b.weight(INPUTS, OUT)])])
    model = b.model({"x": (rows, INPUTS)}, {y: (rows, OUT)})
    x = np.random.default_rng(1).normal(size=(4, rows, INPUTS)).astype(np.float32)
    program = quantize(model, [{"x": x}], RECIPE).program
    kernels: list[PackedConvolution] = []
    call = Lowering.call

    def listen(state: Lowering, name: str, kernel: object, *operands: object) -> None:
        if isinstance(kernel, PackedConvolution):
            kernels.append(kernel)
        call(state, name, kernel, *operands)  # type: ignore[arg-type]

    monkeypatch.setattr(Lowering, "call", listen)
    options = {"target": f"llvm:{cpu}", "weights": weights}
    try:
        assert_same_codes(program, {"x": x[:2]}, tmp_path, **options)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    (kernel,) = kernels
    few = rows <= fast.MOST_PIXELS_DECODED[kernel.isa]
    assert (kernel.bits > 0) == (weights == "packed" or (weights == "auto" and few))
