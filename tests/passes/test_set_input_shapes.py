"""Sizes that a model leaves open are set before anything else is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from small_graphs import draw, graph

import ptq
from ptq.cli import main
from ptq.errors import RecipeError, UsageError
from ptq.passes.prepare import prepare
from ptq.report.options import input_shapes_of

# Shape arithmetic, a mean over an image and an interpolating resize: all want to know the sizes.
OPEN = (
    "(float[N, 3, H, W] x) => (float[N, 2] y) {"
    " c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)"
    ' r = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(c, , twice)'
    " s = Shape<start = 0, end = 1>(r) t = Concat<axis = 0>(s, rest) f = Reshape(r, t)"
    " g = GlobalAveragePool(f) y = Flatten(g) }"
)
WEIGHTS: dict[str, Any] = {
    "w": draw(2, 3, 3, 3),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "rest": np.array([2, 16, -1]),
}
SHAPES = {"x": (None, 3, 8, 12)}


def test_sizes_become_numbers_and_the_batch_stays_open() -> None:
    prepared = prepare(graph(OPEN, WEIGHTS), input_shapes=SHAPES)
    assert [str(d) for d in prepared.graph.inputs[0].shape or ()] == ["N", "3", "8", "12"]
    (mean,) = (node for node in prepared.graph if node.op_type == "GlobalAveragePool")
    assert mean.inputs[0] is not None
    assert [str(d) for d in mean.inputs[0].shape or ()] == ["N", "2", "16", "24"]


def test_the_model_itself_is_not_touched() -> None:
    model = graph(OPEN, WEIGHTS)
    prepare(model, input_shapes=SHAPES)
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["N", "3", "H", "W"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, "no such input; there is x"),
        ({"x": (1, 3, 8)}, r"got \[1, 3, 8\]; the model has \[N, 3, H, W\]"),
        ({"x": (None, 4, 8, 12)}, r"got \[\?, 4, 8, 12\]; the model has"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shapes: dict[str, tuple[int | None, ...]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(graph(OPEN, WEIGHTS), input_shapes=shapes)


def test_nothing_stays_float_and_the_recipe_remembers(tmp_path: Path) -> None:
    samples = [{"x": draw(8, 3, 8, 12)}]
    recipe = ptq.Recipe(effort="fast")
    ways = {False: recipe, True: recipe.replace(input_shapes=SHAPES)}
    found = {k: ptq.quantize(graph(OPEN, WEIGHTS), samples, way) for k, way in ways.items()}
    islands = {k: [i.op_type for i in r.outline.islands if i.reason] for k, r in found.items()}
    assert {"GlobalAveragePool", "Resize"} <= set(islands[False])
    assert islands[True] == []
    path = tmp_path / "model.onnx"
    found[True].save(path)
    assert ptq.verify_file(path, ptq.VerifyOptions(calib=samples)).passed


def test_a_recipe_file_has_them(tmp_path: Path) -> None:
    recipe = ptq.Recipe(input_shapes=SHAPES)
    (tmp_path / "r.json").write_text(recipe.to_json())
    assert ptq.Recipe.load(tmp_path / "r.json") == recipe
    with pytest.raises(RecipeError, match="any size of an input"):
        ptq.Recipe.preset("w4a16").replace(input_shapes=SHAPES)


def test_sizes_on_the_command_line() -> None:
    given = input_shapes_of(["x=?,3,8,12", "a=b=4"])
    assert given == {"x": (None, 3, 8, 12), "a=b": (4,)}


@pytest.mark.parametrize("text", ["x", "x=", "x=3,", "x=3,-1", "x=0", "=3"])
def test_other_texts_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=r"wanted NAME=SIZES"):
        input_shapes_of([text])


def test_the_command_refuses_before_it_calibrates(tmp_path: Path) -> None:
    from onnx_ir import save

    save(graph(OPEN, WEIGHTS), tmp_path / "m.onnx")
    command = ["quantize", str(tmp_path / "m.onnx"), "--input-shape", "x=1,3,8,8,8", "--quiet"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 2
    assert "the model has [N, 3, H, W]" in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
