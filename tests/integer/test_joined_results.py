"""Results that a Concat joins keep grids of their own: it is done when they are floats again."""

import logging

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ptq.integer.outline import outline
from ptq.integer.reference import Reference
from ptq.passes.prepare import prepare
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.result import Result
from tests.detector import BOXES, detector, images
from tests.graphs import GraphBuilder


@pytest.fixture(scope="module", params=["onnx", "onnx-strict"])
def detectors(request: pytest.FixtureRequest) -> Result:
    recipe = Recipe(target=request.param, effort="fast", strict=True)  # no float island
    return quantize(detector(), [{"x": images(64)}], recipe)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_scores_beside_boxes_have_levels_of_their_own(detectors: Result) -> None:
    x = images(16, seed=2)
    wanted, got = run(detectors.float_model, x), run(detectors.model, x)
    for part in (slice(0, BOXES), slice(BOXES, None)):
        error = np.square(got[:, part] - wanted[:, part]).mean()
        assert np.square(wanted[:, part]).mean() / error > 1000
    assert len(np.unique(got[:, BOXES:])) > 100
    reference = Reference(detectors.program).run({"x": x})
    np.testing.assert_array_equal(got, next(iter(reference.values())))


def kinds(model: ir.Model, recipe: Recipe) -> list[str]:
    return [unit.kind for unit in outline(model, recipe).units]


@pytest.mark.parametrize("turned", [False, True])
def test_only_floats_are_joined_as_floats(turned: bool) -> None:
    model = prepare(ir.from_proto(detector(turned=turned)))
    assert "concat" not in kinds(model, Recipe())
    assert kinds(model, Recipe()).count("move") == 4 + 1  # reshapes and the pool
    assert kinds(model, Recipe(io="int8")).count("concat") >= 1


def test_a_concat_that_a_layer_reads_stays_integer() -> None:
    b = GraphBuilder(np.random.default_rng(0))
    y = b.node("Concat", ["x", b.node("Relu", ["x"])], axis=1)
    z = b.node("Conv", [y, b.weight(4, 6, 1, 1)])
    both = b.model({"x": (3, 4, 4)}, {z: (4, 4, 4), y: (6, 4, 4)})
    assert "concat" in kinds(prepare(ir.from_proto(both)), Recipe())


@pytest.mark.parametrize("io", ["float", "int8"])
def test_scores_that_lose_their_levels_are_named(io: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        quantize(detector(), [{"x": images(16)}], Recipe(effort="fast", io=io))
    warned = [r.message for r in caplog.records if "with one grid for all" in r.message]
    assert len(warned) == (2 if io == "int8" else 0)  # one for each scale
    assert all("levels" in message and "--io float" in message for message in warned)
