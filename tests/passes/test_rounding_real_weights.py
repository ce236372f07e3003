"""Rounding real networks' weights; inputs are drawn with neighbouring columns correlated."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from ptq.grid import Grid
from ptq.passes.rounding import coordinate_descent, gptq, refine, row_errors, search_scales, squant

MODELS = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[3] / "shared")) / "models"
NAMES = ("resnet20_cifar10.onnx", "efficientnet_lite0.onnx")


def convolutions(path: Path) -> list[tuple[np.ndarray, int]]:
    """(weight [out, in / groups, k], groups) of every convolution: some of each size."""
    graph = onnx.load(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in arrays:
            w = arrays[node.input[1]].astype(np.float64)
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            found.append((w.reshape(*w.shape[:2], -1), group))
    return found[1::5]


def gram_of(groups: int, size: int) -> np.ndarray:
    """[groups, K, K]: rectified noise, smoothed along the columns."""
    generator = np.random.default_rng(size)
    x = generator.normal(size=(groups, min(4 * size, 1500), size + 4))
    x = np.maximum(np.lib.stride_tricks.sliding_window_view(x, 5, axis=2).mean(axis=3) + 0.1, 0)
    return np.asarray(x.swapaxes(1, 2) @ x / x.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [Grid(4), Grid(2), Grid(4, power=1.25)], ids=str)
def test_each_stage_improves_on_the_one_before(name: str, grid: Grid) -> None:
    if not (MODELS / name).exists():
        pytest.skip(f"{MODELS / name} is not there")
    stages = []
    for kernels, groups in convolutions(MODELS / name):
        w = kernels.reshape(len(kernels), -1)
        gram = gram_of(groups, w.shape[1])
        scale, zero_point = search_scales(w, grid)
        options = (grid, scale, zero_point)
        nearest = grid.quantize(w, scale, zero_point)
        fed = gptq(w, gram, *options)
        polished = coordinate_descent(w, fed, gram, *options)
        refined, refitted = refine(w, polished, gram, *options, lambda s: s)
        flipped = squant(kernels, *options).reshape(w.shape)
        results = [(c, scale) for c in (nearest, flipped, fed, polished)] + [(refined, refitted)]
        errors = [
            row_errors(w, grid.dequantize(codes, s, zero_point), gram).sum() for codes, s in results
        ]
        stages.append(np.log(np.array(errors) / errors[0]))
    assert len(stages) > 2
    _, squanted, gptqed, polished_mean, refined_mean = np.exp(np.mean(stages, axis=0))
    assert squanted < 0.95
    assert gptqed < 0.8
    assert polished_mean < 0.99 * gptqed
    assert refined_mean < polished_mean
