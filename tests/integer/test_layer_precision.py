"""The precision map: who gets which width, what is refused, and any mix in one integer program."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ptq.errors import RecipeError
from ptq.execute.taps import tapped
from ptq.integer.layer_precision import weight_bits
from ptq.integer.outline import Outline, outline
from ptq.integer.reference import Reference
from ptq.model import load
from ptq.passes.prepare import prepare
from ptq.pipeline import quantize
from ptq.precision import load_map, save_map
from ptq.recipe import Recipe
from tests.graphs import random_graph
from tests.integer.test_outline import graph, node

WEIGHT = np.ones((4, 4, 1, 1), np.float32)


def chain(count: int = 3, **choices: object) -> tuple[Outline, Recipe]:
    """conv1 .. convN on x; the outline under a recipe."""
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    nodes = [
        node("Conv", [names[i - 1], f"w{i}"], [names[i]], name=f"conv{i}")
        for i in range(1, count + 1)
    ]
    weights = {f"w{i}": WEIGHT * i for i in range(1, count + 1)}
    recipe = Recipe().replace(**choices)
    return outline(graph(nodes, weights, ["N", 4, 5, 5], ["y"]), recipe), recipe


def test_a_later_pattern_has_the_last_word_on_what_it_says() -> None:
    said = {"*": "w4a6", "re:conv[23]": "w2", "conv3": "a5"}
    sketch, recipe = chain(precision_map=said)
    assert [weight_bits(unit, recipe) for unit in sketch.units] == [4, 2, 2]
    assert {name: site.bits for name, site in sketch.sites.items()} == {
        "x": 6, "t1": 6, "t2": 5, "y": 8
    }  # fmt: skip


def test_what_the_map_leaves_unsaid_is_the_recipes() -> None:
    sketch, recipe = chain(weight_bits=4, activation_bits=4, precision_map={"conv2": "w3"})
    assert [weight_bits(unit, recipe) for unit in sketch.units] == [8, 3, 8]
    assert sketch.sites["t1"].bits == 4


def test_float_makes_an_island_and_a_later_width_takes_it_back() -> None:
    sketch, _ = chain(precision_map={"Conv": "float", "conv[13]": "w8"})
    assert [(i.name, i.reason) for i in sketch.islands] == [("conv2", "float in the precision map")]


def test_the_narrowest_reader_decides_a_shared_tensor() -> None:
    nodes = [
        node("Conv", ["x", "w0"], ["t"], name="stem"),
        node("Conv", ["t", "w1"], ["a"], name="left"),
        node("Conv", ["t", "w2"], ["b"], name="right"),
        node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    weights = {f"w{i}": WEIGHT * (1 + i) for i in range(3)}
    model = graph(nodes, weights, ["N", 4, 5, 5], ["y"])
    sketch = outline(model, Recipe(precision_map={"left": "a4", "right": "a7"}))
    assert sketch.sites["t"].bits == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"fc*": "w4"}, "matches no node"),
        ({"conv1": "w9"}, "wanted w<2-8>"),
        ({"conv1": ""}, "wanted w<2-8>"),
        ({"re:(": "w4"}, "re:\\("),
        ({"relu": "w4"}, "no layer that is quantised and has a weight"),
        ({"relu": "a4"}, "no multiplication"),
    ],
)
def test_maps_that_cannot_be_followed_are_refused(said: dict[str, str], message: str) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["t"], name="conv1"),
        node("Sigmoid", ["t"], ["y"], name="relu"),
    ]
    with pytest.raises(RecipeError, match=message):
        outline(graph(nodes, {"w": WEIGHT}, ["N", 4, 5, 5], ["y"]), Recipe(precision_map=said))


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_written_map_reads_back_in_order(tmp_path: Path, suffix: str) -> None:
    said = {'layer "1"/conv[[]0]': "w4a8", "re:^fc\\.": "w8", "*": "a4", "größe": "float"}
    save_map(said, tmp_path / f"map{suffix}")
    assert list(load_map(tmp_path / f"map{suffix}").items()) == list(said.items())


def test_files_that_are_no_map_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('conv1 = "w4"\nconv2 = 4\n')
    with pytest.raises(RecipeError, match=r"m\.toml"):
        load_map(tmp_path / "m.toml")


@pytest.mark.parametrize("seed", range(8))
def test_any_mix_of_widths_runs_as_the_reference_says(seed: int) -> None:
    proto, shapes = random_graph(seed)
    rng = np.random.default_rng(seed)
    (name, shape), *_ = shapes.items()
    samples = [{name: rng.normal(size=(8, *shape)).astype(np.float32)}]
    said = {
        glob.escape(unit.name): f"w{rng.integers(2, 9)}a{rng.integers(4, 9)}"
        for unit in outline(prepare(load(proto)), Recipe()).weighted
    }
    result = quantize(proto, samples, Recipe(precision_map=said, effort="fast"))
    found = {u: w.grid.bits for u, w in result.plan.weights.items()}
    assert found == {n: int(said[glob.escape(n)][1]) for n in found}
    feeds = {name: (2 * rng.normal(size=(3, *shape))).astype(np.float32)}
    expected = Reference(result.program).run_codes(feeds)
    names = [v for v in expected if v not in result.program.code_constants]
    taps = [f"{v}_quantized" for v in names]
    model = ir.to_proto(tapped(result.model, taps)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for value, codes in zip(names, session.run(taps, feeds), strict=True):
        np.testing.assert_array_equal(codes, expected[value], f"seed {seed}: {value}")
