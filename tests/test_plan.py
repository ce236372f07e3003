"""Plan: saved and loaded without loss; weights decode to what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptq.errors import InvalidModelError
from ptq.grid import Grid
from ptq.plan import ActivationPlan, Plan, WeightPlan


def example() -> Plan:
    rng = np.random.default_rng(0)
    weight = WeightPlan(
        Grid(4),
        axis=1,
        scale=np.float32([0.1, 0.2, 0.3]),
        zero_point=np.array([8, 7, 9]),
        codes=rng.integers(0, 16, (6, 3)).astype(np.uint8),
        block_size=2,
        block_multiplier=np.array([[1, 2, 3], [4, 5, 6], [7, 8, 1]], np.int8),
    )
    activation = ActivationPlan(Grid(4), np.float32(0.07), 6, 0, 15)
    return Plan({"x": activation}, {"fc": weight}, {"fc": np.array([1.0, -2.0, 3.5])})


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    plan = example()
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.activations == plan.activations
    np.testing.assert_array_equal(loaded.biases["fc"], plan.biases["fc"])
    for key in ("scale", "zero_point", "codes", "block_multiplier", "axis", "grid", "block_size"):
        np.testing.assert_array_equal(
            getattr(loaded.weights["fc"], key), getattr(plan.weights["fc"], key)
        )


def test_blocks_scale_the_decoded_integers_of_their_channel() -> None:
    weight = example().weights["fc"]
    decoded = weight.decode()
    codes, zero = weight.require_codes().astype(int), weight.zero_point
    for column in range(3):
        for row in range(6):
            factor = weight.block_multiplier[column, row // 2]  # type: ignore[index]
            assert decoded[row, column] == (codes[row, column] - zero[column]) * factor


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"not a plan at all")
    with pytest.raises(InvalidModelError):
        Plan.load(path)


def test_activations_round_half_to_even_and_saturate() -> None:
    grid = ActivationPlan(Grid(8), np.float32(1.0), 10, 4, 20)
    got = grid.quantize(np.float32([-100, 0.5, 1.5, 2.5, 100]))
    np.testing.assert_array_equal(got, [4, 10, 12, 12, 20])


def test_a_value_out_of_reach_saturates_in_silence() -> None:
    grid = ActivationPlan(Grid(8), np.float32(1e-12), 0)
    assert grid.quantize(np.array([3e38, -3e38], np.float32)).tolist() == [255, 0]
