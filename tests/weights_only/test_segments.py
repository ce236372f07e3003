"""Products, what has weights but stays float, and where the graph is cut."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from ptq.errors import RecipeError
from ptq.model import load
from ptq.recipe import Recipe
from ptq.weights_only.products import find_products
from ptq.weights_only.run import blocks_of
from ptq.weights_only.segments import cut
from tests.weights_only.networks import gated_network

W4 = Recipe.preset("w4a16")


def names(products: object) -> list[str]:
    return [product.name for product in products]  # type: ignore[attr-defined]


def test_products_that_share_an_input_share_a_segment() -> None:
    graph = load(gated_network()).graph
    segments = cut(graph, find_products(graph, W4)[0])
    assert [names(segment.products) for segment in segments] == [
        ["gate0", "up0"], ["down0"], ["gate1", "up1"], ["down1"], ["head"],
    ]  # fmt: skip


def test_a_cut_lies_behind_the_residual_sum() -> None:
    graph = load(gated_network()).graph
    segments = cut(graph, find_products(graph, W4)[0])
    assert [segment.joint for segment in segments] == ["m0", "x0", None, "x1", None]
    assert segments[1].inputs == ("m0", "x")
    assert segments[2].inputs == ("x0",)
    blocks = [[names(s.products) for s in block] for block in blocks_of(segments)]
    assert blocks[1:] == [[["down0"]], [["gate1", "up1"], ["down1"]], [["head"]]]


def test_nothing_behind_the_last_product_is_run() -> None:
    model = load(gated_network())
    products, _ = find_products(model.graph, W4.replace(exclude=("head",)))
    segments = cut(model.graph, products)
    assert segments[-1].products[-1].name == "down1"
    assert segments[-1].outputs == ()


def test_include_exclude_and_the_map_choose_products() -> None:
    graph = load(gated_network()).graph
    products, stays = find_products(graph, W4.replace(include=("*0",)))
    assert names(products) == ["gate0", "up0", "down0"]
    assert {(s.node.name, s.reason) for s in stays} == {
        ("gate1", "not in --include"),
        ("up1", "not in --include"),
        ("down1", "not in --include"),
    }
    recipe = W4.replace(precision_map={"down*": "w8", "gate0": "float"})
    found = {p.name: p.bits for p in find_products(graph, recipe)[0]}
    assert found == {"up0": 4, "down0": 8, "gate1": 4, "up1": 4, "down1": 8, "head": 4}


def test_edge_bits_are_those_of_the_last_product() -> None:
    graph = load(gated_network()).graph
    products, _ = find_products(graph, W4.replace(edge_bits=8))
    assert [p.bits for p in products] == [4] * 6 + [8]


def test_a_width_that_cannot_be_stored_is_refused() -> None:
    graph = load(gated_network()).graph
    with pytest.raises(RecipeError, match=r"down0: got 6 bits; wanted 2, 3, 4 or 8"):
        find_products(graph, W4.replace(precision_map={"down0": "w6"}))


def test_nothing_to_quantise_is_an_error() -> None:
    graph = load(gated_network()).graph
    with pytest.raises(RecipeError, match="no MatMul or Gemm"):
        find_products(graph, W4.replace(exclude=("MatMul", "Gemm")))


def test_a_scaled_gemm_stays_float_with_a_reason() -> None:
    proto = gated_network()
    head = proto.graph.node[-1]
    head.attribute.append(helper.make_attribute("alpha", 0.5))
    large = numpy_helper.from_array(np.ones((32, 64), np.float32), "head.weight")
    proto.graph.initializer[-2].CopyFrom(large)
    del proto.graph.node[-1].attribute[0]  # transB
    del head.input[2]
    products, stays = find_products(load(proto).graph, W4)
    assert "head" not in names(products)
    assert [s.reason for s in stays] == ["a Gemm with alpha, beta or transA"]
