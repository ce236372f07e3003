"""Recipe: presets, files, and values that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq.errors import RecipeError
from ptq.recipe import PRESETS, Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_presets_mean_what_they_say(name: str) -> None:
    recipe = Recipe.preset(name)
    assert recipe.precision == name
    assert (recipe.weight_bits, recipe.activation_bits) == (int(name[1]), int(name[3]))


def test_bits_four_is_w4a8_with_eight_bit_edges() -> None:
    recipe = Recipe.from_bits(4)
    assert (recipe.precision, recipe.edge_bits) == ("w4a8", 8)


def test_json_and_toml_round_trip(tmp_path: Path) -> None:
    recipe = Recipe(weight_bits=3, exclude=("re:fc.*",), seed=7)
    (tmp_path / "r.json").write_text(recipe.to_json())
    assert Recipe.load(tmp_path / "r.json") == recipe
    (tmp_path / "r.toml").write_text('weight_bits = 3\nexclude = ["re:fc.*"]\nseed = 7\n')
    assert Recipe.load(tmp_path / "r.toml") == recipe


@pytest.mark.parametrize("text", ['{"weight_bits": 9}', '{"wieght_bits": 4}', "{", '{"seed": "x"}'])
def test_bad_recipes_are_refused_with_the_file_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.json"):
        Recipe.load(path)


@pytest.mark.parametrize("name", ["w1a8", "w4", "w4a1", "int8", "w4a88"])
def test_unknown_precisions_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="wanted"):
        Recipe.preset(name)


def test_without_samples_only_changes_what_needs_them() -> None:
    recipe = Recipe.from_bits(4).replace(seed=3).without_samples()
    assert recipe == Recipe.from_bits(4).replace(
        seed=3,
        rounding="squant",
        calib_method="minmax",
        effort="fast",
        samples=64,
        activation_grid="uniform",
    )
