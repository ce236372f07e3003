"""Learned rounding of sequences: samples of several lengths, 16-bit codes between blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ptq
from ptq.calib_data import input_specs, open_calibration
from ptq.execute.float import FloatRunner
from ptq.integer.blocks import find_blocks
from ptq.integer.lower import lower
from ptq.integer.outline import outline
from ptq.integer.reference import Reference
from ptq.passes.context import Context
from ptq.passes.learn_rounding import LearnRounding
from ptq.passes.learning.learn_block import hard_run
from ptq.passes.learning.sample_axes import sample_axes
from ptq.passes.learning.samples import Layout, SampleStore
from ptq.passes.learning.shards import Part, shared_batches
from ptq.passes.learning.steps import block_steps
from ptq.passes.prepare import prepare
from ptq.pipeline import make_plan
from ptq.plan import Plan
from tests.graphs import GraphBuilder
from tests.integer.test_transformer_block import AUTO, Block
from tests.passes.test_learn_rounding import context_of

Array = np.ndarray[Any, Any]
LENGTHS = (5, 7, 6)


def sentences(count: int, seed: int) -> list[dict[str, Array]]:
    """One at a time, of several lengths."""
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(0, 11, (1, LENGTHS[i % 3]))} for i in range(count)]


@pytest.fixture(scope="module")
def net() -> tuple[Context, Plan]:
    torch.manual_seed(0)
    ids = torch.zeros(2, 6, dtype=torch.int64)
    dynamic = ({0: AUTO, 1: AUTO},)
    model = ptq.load(Block(norm_first=True).eval(), example_inputs=(ids,), dynamic_shapes=dynamic)
    recipe = ptq.Recipe.preset("w4a8").replace(effort="fast", samples=48, rounding="nearest",
                                               bias_correction=False)  # fmt: skip
    graph = prepare(model)
    calib = open_calibration(sentences(48, 0), input_specs(graph), limit=48, seed=0)
    context = Context(graph, outline(graph, recipe), recipe, calib.batches, samples=calib.samples)
    return context, make_plan(context)


def error(context: Context, plan: Plan) -> float:
    name = str(context.model.graph.outputs[0].name)
    runner = FloatRunner(context.model, [name])
    reference = Reference(lower(context.model, context.outline, plan))
    unseen = sentences(24, 1)
    return sum(float(np.square(runner.run(x)[name] - reference.run(x)[name]).sum()) for x in unseen)


def test_sentences_of_several_lengths_are_learned_on(net: tuple[Context, Plan]) -> None:
    learned = LearnRounding(iterations=60, batch=16, lr=2e-2)(*net)
    assert error(net[0], learned) < 0.8 * error(*net)


def test_codes_of_16_bits_pass_from_block_to_block(net: tuple[Context, Plan]) -> None:
    context, plan = net
    program = lower(context.model, context.outline, plan)
    sentence = sentences(1, 2)[0]
    wanted, given = Reference(program).run_codes(sentence), dict[str, Array](sentence)
    wide = 0
    for block in find_blocks(context.model, context.outline):
        part = block_steps(program, block)
        given |= hard_run(program, part, part.steps)(given)
        for ref in (ref for ref in part.outputs if ref.codes):
            assert given[ref.name].dtype == wanted[ref.name].dtype
            np.testing.assert_array_equal(given[ref.name], wanted[ref.name])
            wide += bool(given[ref.name].max() > 255)
    assert wide


def test_samples_lie_with_those_of_their_shape() -> None:
    batches = [{"x": np.full((rows, size), rows)} for rows, size in ((2, 5), (1, 3), (3, 5))]
    layout = Layout.of(batches, {})
    with SampleStore(layout, 1 << 20) as store:
        start = 0
        for batch in batches:
            index = np.arange(start, start := start + len(batch["x"]))
            store.write(index, batch)
        index = np.array([1, 2, 4, 5])
        found = [(list(part), store.take(["x"], part)["x"]) for part in layout.parts(index, 2)]
    assert [part for part, _ in found] == [[1, 4], [5], [2]]
    assert [x.tolist() for _, x in found] == [[[2] * 5, [3] * 5], [[3] * 5], [[1] * 3]]


def test_every_sample_weighs_the_same_whatever_part_it_is_in() -> None:
    weight = torch.ones(()).requires_grad_()
    parts = [
        Part(rows, {"x": np.full((rows, rows), rows, np.float32)}, {}, {}) for rows in (3, 1, 2)
    ]

    def loss(part: Part, _: torch.Generator) -> Tensor:
        mean: Tensor = weight * torch.from_numpy(part.given["x"]).mean()
        return mean

    with shared_batches(loss, [weight], torch.device("cpu"), 0) as set_gradients:
        found = set_gradients(parts)
    assert found == pytest.approx((3 * 3 + 1 + 2 * 2) / 6)
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(found)


def test_samples_may_lie_on_another_axis_between_layers() -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder(rng)
    y = b.node("Transpose", ["x"], perm=[1, 0, 2])
    for width in (8, 6, 8, 6):
        y = b.node("Relu", [b.node("MatMul", [y, b.weight(6 if width == 8 else 8, width)])])
    mask = b.constant(rng.normal(size=(5, 1, 6)).astype(np.float32))
    y = b.node("MatMul", [b.node("Add", [y, mask]), b.weight(6, 3)])
    proto = b.model({"x": (5, 6)}, {b.node("Transpose", [y], perm=[1, 0, 2]): (5, 3)})
    recipe = ptq.Recipe.preset("w4a8").replace(effort="fast", samples=48, rounding="nearest",
                                               bias_correction=False)  # fmt: skip
    context = context_of(proto, {"x": rng.normal(size=(48, 5, 6)).astype(np.float32)}, recipe)
    blocks = find_blocks(context.model, context.outline)
    names = [name for block in blocks for name in block.outputs]
    axes = sample_axes(context.model, names, context.batches(1))
    assert axes is not None
    assert {axes["x"], axes[names[0]]} == {0, 1}
    plan = make_plan(context)
    assert LearnRounding(iterations=40, batch=16, lr=2e-2)(context, plan) is not plan
