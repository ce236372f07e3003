"""Operands and result of a 16-bit sum share a scale where that costs nothing that counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from ptq.grid import Grid
from ptq.integer.units import Outline, Site, Unit
from ptq.passes.tie_sums import SPARE_BITS, TOP, tie_sums
from ptq.plan import ActivationPlan

ANY = (-float("inf"), float("inf"))


def unit(kind: str, inputs: str, output: str, op_type: str = "") -> Unit:
    node = ir.node(op_type or kind.title(), [])
    return Unit(kind, output, tuple(inputs), (output,), (node,))


def outline(*units: Unit, narrow: str = "") -> Outline:
    names = {name for u in units for name in (*u.inputs, *u.outputs)}
    sites = {n: Site(n, 8 if n in narrow else 16, ANY, "unit") for n in names}
    return Outline(units, sites, {}, {})


def grid(low: float, high: float) -> ActivationPlan:
    scale = (high - low) / (TOP - 2)
    return ActivationPlan(Grid(16), np.float32(scale), 2 * round(-low / scale / 2), 0, TOP)


def covers(found: ActivationPlan, given: ActivationPlan) -> bool:
    def ends(g: ActivationPlan) -> np.ndarray:
        return np.array([-g.zero_point, g.high - g.zero_point]) * float(g.scale)

    room = np.abs(ends(given) - ends(found)) <= float(found.scale) * 2  # zero points are even
    return bool((room | (np.abs(ends(found)) >= np.abs(ends(given)))).all())


SUM = outline(unit("add", "ab", "y"), unit("norm", "y", "n"), narrow="n")


@pytest.mark.parametrize(
    ("a", "b", "y"),
    [
        ((-1, 1), (-3, 2), (-3.5, 2.5)),
        ((-1, 200), (-16, 60), (-22, 242)),
        ((-0.01, 0.01), (-5, 9), (-5, 9)),
        ((-2, 3), (-3, 2), (-1, 1)),  # they cancel
        ((0, 4), (-7, 0), (-7, 4)),
    ],
)
def test_a_lone_sum_has_no_factor_and_no_offset(a, b, y) -> None:
    grids = {
        "a": grid(*a),
        "b": grid(*b),
        "y": grid(*y),
        "n": ActivationPlan(Grid(8), np.float32(1), 0),
    }
    found = tie_sums(SUM, grids)
    assert set(found) == set("aby")
    assert len({g.scale for g in found.values()}) == 1
    assert found["a"].zero_point + found["b"].zero_point == found["y"].zero_point
    assert all(g.zero_point % 2 == 0 for g in found.values())
    assert all(covers(found[name], grids[name]) for name in "ab")
    assert found["y"].scale <= grids["y"].scale * 2**SPARE_BITS


def test_a_chain_has_one_scale_while_its_members_keep_their_precision() -> None:
    chain = outline(
        unit("add", "ab", "s"), unit("add", "sc", "t"), unit("norm", "s", "m"),
        unit("norm", "t", "n"), narrow="mn",
    )  # fmt: skip
    grids = {name: grid(-1, 1) for name in "abc"} | {"s": grid(-2, 2), "t": grid(-3, 3)}
    grids |= dict.fromkeys("mn", ActivationPlan(Grid(8), np.float32(1), 0))
    assert {g.scale for g in tie_sums(chain, grids).values()} == {grids["t"].scale}
    grids["t"] = grid(-300, 300)  # s is read by a norm, too, and would have 9 bits
    found = tie_sums(chain, grids)
    assert found["t"].scale == found["c"].scale == grids["t"].scale
    assert found["s"].scale == found["a"].scale == found["b"].scale < grids["t"].scale / 99
    assert covers(found["c"], grids["c"])


def test_leaves_other_sums_alone() -> None:
    grids = {"a": grid(-1, 1), "b": grid(-1, 1), "y": grid(-2, 2)}
    grids["n"] = ActivationPlan(Grid(8), np.float32(1), 0)
    assert tie_sums(outline(unit("multiply", "ab", "y")), grids) == {}
    narrow = outline(unit("add", "ab", "y"), narrow="aby")
    assert tie_sums(narrow, grids) == {}
    cut = grids | {"y": replace(grids["y"], low=grids["y"].zero_point)}  # a Relu
    assert tie_sums(SUM, cut) == {}


def test_a_difference_keeps_its_offset() -> None:
    difference = outline(unit("add", "ab", "y", "Sub"))
    grids = {"a": grid(-1, 1), "b": grid(-1, 3), "y": grid(-4, 2)}
    found = tie_sums(difference, grids)
    assert {g.scale for g in found.values()} == {grids["y"].scale}
    assert found["y"] == grids["y"]
