"""Fisher scores: they predict the KL that is then measured, and fall with bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq.execute.float import FloatRunner
from ptq.grid import Grid
from ptq.integer.outline import outline
from ptq.passes.context import Batch, Context
from ptq.passes.prepare import prepare
from ptq.passes.score_importance import ScoreImportance, WeightError, falling
from ptq.plan import ActivationPlan
from ptq.recipe import Recipe
from tests.small_cnn import CLASSES, SHAPE, small_cnn

SAMPLES = np.random.default_rng(5).normal(size=(64, *SHAPE)).astype(np.float32)


def context_of(last: str = "Identity") -> Context:
    model = prepare(ir.from_proto(small_cnn(last=last)))

    def batches(size: int) -> Iterator[Batch]:
        yield from ({"x": SAMPLES[i : i + size]} for i in range(0, len(SAMPLES), size))

    return Context(model, outline(model, Recipe()), Recipe(), batches, samples=len(SAMPLES))


def logits(model: ir.Model, changes: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Logits of all samples with other constants in the place of some."""
    clone = ir.from_proto(ir.to_proto(model))
    for name, array in changes.items():
        clone.graph.initializers[name].const_value = ir.tensor(array)
    return FloatRunner(clone, []).run({"x": SAMPLES})[str(clone.graph.outputs[0].name)]


def divergence(wanted: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    """Mean KL(softmax wanted || softmax got)."""
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (wanted, got))
    return float((np.exp(p) * (p - q)).sum(1).mean())


@pytest.mark.parametrize("layer", [0, 1])
def test_the_score_of_a_weight_is_the_divergence_it_causes(layer: int) -> None:
    context = context_of()
    unit = context.outline.weighted[layer]
    weight = unit.weight.const_value.numpy()  # type: ignore[union-attr]
    delta = (0.01 * np.random.default_rng(1).normal(size=weight.shape)).astype(np.float32)
    channels = weight.shape[0]
    errors = {unit.name: {4: WeightError(delta, np.zeros(channels, np.float32))}}
    score = ScoreImportance(probes=64)(context, errors, {}).weights[unit.name][4]
    changed = logits(context.model, {str(unit.weight.name): weight + delta})  # type: ignore[union-attr]
    # 64 samples x 64 random directions: 5 % of noise; third-order terms: 2 %
    assert score == pytest.approx(divergence(logits(context.model, {}), changed), rel=0.15)


def test_the_score_of_an_activation_is_the_divergence_it_causes() -> None:
    context = context_of()
    grid = ActivationPlan(Grid(6), np.float32(0.1), 32, 0, 63)
    score = ScoreImportance(probes=64)(context, {}, {"x": {6: grid}}).activations["x"][6]
    rounded = grid.dequantize(grid.quantize(SAMPLES))
    output = str(context.model.graph.outputs[0].name)
    got = FloatRunner(context.model, []).run({"x": rounded})[output]
    assert score == pytest.approx(divergence(logits(context.model, {}), got), rel=0.15)


def test_scores_under_a_final_softmax_are_those_of_its_logits() -> None:
    found = []
    for last in ("Identity", "Softmax"):
        context = context_of(last)
        unit = context.outline.weighted[0]
        weight = unit.weight.const_value.numpy()  # type: ignore[union-attr]
        error = WeightError(0.01 * weight, np.zeros(len(weight), np.float32))
        found.append(ScoreImportance()(context, {unit.name: {4: error}}, {}).weights[unit.name][4])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_error_that_the_bias_takes_back_scores_nothing() -> None:
    context = context_of()
    unit = context.outline.weighted[1]
    delta = np.zeros((CLASSES, unit.weight.const_value.shape[1]), np.float32)  # type: ignore
    delta[0] = 0.05
    constant = np.ones((len(SAMPLES), *SHAPE), np.float32)
    context = replace(context, batches=lambda size: iter([{"x": constant}]))
    pooled = FloatRunner(context.model, [unit.inputs[0]]).run({"x": constant})[unit.inputs[0]]
    shift = -(pooled @ delta.T).mean(axis=0)
    scores = [
        ScoreImportance()(context, {unit.name: {4: WeightError(delta, s)}}, {}).weights[unit.name]
        for s in (shift, 0 * shift)
    ]
    assert scores[0][4] < 1e-6 * scores[1][4]


def test_scores_are_made_to_fall_with_bits() -> None:
    assert falling({8: 1.0, 2: 5.0, 4: 0.5}) == {2: 5.0, 4: 1.0, 8: 1.0}
