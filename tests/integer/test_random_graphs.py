"""Random graphs end to end: reference, float simulation and onnxruntime give the same codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ptq.execute.taps import tapped
from ptq.integer.arithmetic import Requantizer
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets import TARGETS
from tests.graphs import random_graph

GRAPHS = 240
A_TEST = 12
PRECISIONS = ("w8a8", "w4a8", "w2a8", "w4a4", "w3a8")


def check(seed: int, strict_target: bool) -> None:
    proto, shapes = random_graph(seed)
    rng = np.random.default_rng(seed)
    (name, shape), *_ = shapes.items()
    samples = [{name: rng.normal(size=(4, *shape)).astype(np.float32)} for _ in range(2)]
    recipe = Recipe.preset(PRECISIONS[seed % len(PRECISIONS)]).replace(seed=seed, effort="fast")
    result = quantize(proto, samples, recipe)
    feeds = {name: (2 * rng.normal(size=(3, *shape))).astype(np.float32)}
    expected = Reference(result.program).run_codes(feeds)
    simulated = Reference(result.program, Requantizer.simulate).run_codes(feeds)
    targets = ["onnx", "onnx-strict"] if strict_target else ["onnx"]
    for codes in expected:
        np.testing.assert_array_equal(simulated[codes], expected[codes], f"seed {seed}: {codes}")
    for target in targets:
        model = TARGETS[target](result.program, io="float")
        names = {f"{v}_quantized": v for v in expected if v not in result.program.code_constants}
        session = ort.InferenceSession(
            ir.to_proto(tapped(model, list(names))).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        for tap, codes in zip(names, session.run(list(names), feeds), strict=True):
            np.testing.assert_array_equal(
                codes, expected[names[tap]], f"seed {seed}, {target}: {tap}"
            )


@pytest.mark.parametrize("first", range(0, GRAPHS, A_TEST))
def test_random_graphs_give_equal_codes_everywhere(first: int) -> None:
    for seed in range(first, first + A_TEST):
        check(seed, strict_target=seed % 4 == 0)
