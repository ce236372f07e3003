"""Blocks: cuts where one tensor flows; nothing lost, nothing twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptq.integer.blocks import Block, find_blocks, whole_network
from ptq.integer.outline import outline
from ptq.integer.units import Outline
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.recipe import Recipe
from tests.graphs import GraphBuilder, random_graph

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[3] / "shared")) / "models"


def blocks_of(model: Any) -> tuple[tuple[Block, ...], Outline]:
    graph = prepare(load(model))
    sketch = outline(graph, Recipe())
    return find_blocks(graph, sketch), sketch


def require_whole(blocks: tuple[Block, ...], sketch: Outline) -> None:
    """Every item once and in order; what a block reads was given or has left a block before."""
    assert [i for block in blocks for i in block.items] == list(sketch.items)
    known = {name for block in blocks[:1] for name in block.inputs}
    for block in blocks:
        made = {name for item in block.items for name in getattr(item, "outputs", ())}
        assert not made & set(block.inputs)
        known |= set(block.outputs)
    for block in blocks[1:]:
        assert set(block.inputs) <= known


@pytest.mark.parametrize(
    ("file", "weights"),
    [
        ("resnet20_cifar10.onnx", [1, *[2] * 9, 1]),
        ("efficientnet_lite0.onnx", [*[3] * 16, 2]),
    ],
)
def test_residual_blocks_and_inverted_bottlenecks(file: str, weights: list[int]) -> None:
    if not (SHARED / file).exists():
        pytest.skip(f"needs {file} in $PTQ_SHARED/models")
    blocks, sketch = blocks_of(SHARED / file)
    require_whole(blocks, sketch)
    assert [len(block.weighted) for block in blocks] == weights
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in blocks)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_are_covered_once(seed: int) -> None:
    model, _ = random_graph(seed)
    blocks, sketch = blocks_of(model)
    require_whole(blocks, sketch)
    assert sum(len(block.weighted) for block in blocks) == len(sketch.weighted)
    results = {value.name for value in load(model).graph.outputs}
    assert results <= {name for block in blocks for name in block.outputs}


def residual_chain(skips: list[bool]) -> Any:
    """Convolutions with a Relu each; True is a residual block of two, False a single one."""
    b = GraphBuilder(np.random.default_rng(0))
    x = "x"
    for skip in skips:
        y = b.node("Relu", [b.node("Conv", [x, b.weight(3, 3, 1, 1)])])
        if skip:
            y = b.node("Conv", [y, b.weight(3, 3, 1, 1)])
            y = b.node("Relu", [b.node("Add", [x, y])])
        x = y
    return b.model({"x": (3, 4, 4)}, {x: (3, 4, 4)})


@pytest.mark.parametrize(
    ("skips", "weights"),
    [
        ([False], [1]),
        ([False] * 5, [3, 2]),
        ([True, True], [2, 2]),
        ([False, True, False, False], [1, 2, 2]),
        ([True, False, False, False, False, True], [2, 3, 1, 2]),
    ],
)
def test_chains_join_and_residual_blocks_stand_alone(skips: list[bool], weights: list[int]) -> None:
    blocks, sketch = blocks_of(residual_chain(skips))
    require_whole(blocks, sketch)
    assert [len(block.weighted) for block in blocks] == weights


def test_an_input_that_is_used_to_the_end_forbids_every_cut() -> None:
    b = GraphBuilder(np.random.default_rng(0))
    y = b.node("Relu", [b.node("Conv", ["x", b.weight(3, 3, 1, 1)])])
    y = b.node("Relu", [b.node("Conv", [y, b.weight(3, 3, 1, 1)])])
    y = b.node("Add", ["x", y])
    blocks, _ = blocks_of(b.model({"x": (3, 4, 4)}, {y: (3, 4, 4)}))
    assert len(blocks) == 1
    assert (blocks[0].inputs, blocks[0].outputs) == (("x",), (y,))


def test_the_whole_network_is_one_block() -> None:
    graph = prepare(load(residual_chain([True, False])))
    sketch = outline(graph, Recipe())
    block = whole_network(graph, sketch)
    assert block.items == sketch.items
    assert block.inputs == ("x",)
    assert block.outputs == tuple(value.name for value in graph.graph.outputs)
