"""x / |x| is an RMS norm of rows, times n^-1/2."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import declined, draw, feeds_for, graph, ops, rewritten

import ptq
from ptq.passes.equivalence import run_float
from ptq.passes.write_unit_norms import write_unit_norms

WAYS = {
    "bare": "d = ReduceL2(x, axis)",
    "clipped": "n = ReduceL2(x, axis) d = Clip(n, e)",
    "largest": "n = ReduceL2(x, axis) d = Max(e, n)",
    "added": "n = ReduceL2(x, axis) d = Add(n, e)",
    "expanded": "n = ReduceL2(x, axis) c = Clip(n, e) s = Shape(x) d = Expand(c, s)",
    "squares": "q = ReduceSumSquare(x, axis) d = Sqrt(q)",
    "product": "p = Mul(x, x) q = ReduceSum(p, axis) d = Sqrt(q)",
    "power": "p = Pow(x, two) q = ReduceSum(p, axis) r = Sqrt(q) d = Max(r, e)",
}
NUMBERS = {"e": np.float32(1e-8), "two": np.float32(2)}


def division(body: str, axis: int = -1, shape: str = "N, 5, 6", **numbers: object) -> ir.Model:
    given: dict[str, object] = {**NUMBERS, **numbers}
    given["axis"] = np.array([axis], np.int64)
    weights = {name: np.asarray(n) for name, n in given.items() if re.search(rf"\b{name}\b", body)}
    return graph(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} y = Div(x, d) }}", weights)


@pytest.mark.parametrize("axis", [-1, 2, 1, -2])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_it(way: str, axis: int) -> None:
    after = rewritten(division(WAYS[way], axis), write_unit_norms)
    assert ops(after).get("Transpose", 0) == (0 if axis in (-1, 2) else 2)
    assert ops(after)["ReduceMean"] == 1


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_operator(axis: int) -> None:
    text = (
        f"(float[N, 5, 6] x) => (float[N, 5, 6] y) {{ y = LpNormalization<axis: int = {axis}>(x) }}"
    )
    assert "LpNormalization" not in ops(rewritten(graph(text), write_unit_norms))


def test_a_row_of_zeros_stays_one() -> None:
    model = division(WAYS["bare"])
    write_unit_norms(model.graph)
    feeds = feeds_for(model)
    feeds["x"][0, 1] = 0
    y = run_float(model, feeds)["y"]
    assert np.all(y[0, 1] == 0)
    np.testing.assert_allclose(np.linalg.norm(y[1], axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        division(WAYS["clipped"], e=np.float32(0.5)),
        division("a = Abs(x) d = ReduceL2(a, axis)"),
        division("a = Abs(x) d = ReduceMax(a, axis)"),
        division("n = ReduceL2(x, axis) d = Clip(n, e, two)"),
        division(WAYS["bare"], 1, "N, M, 6"),
        division("d = ReduceL2<keepdims: int = 0>(x, axis)", 0, "6, 6"),
        graph("(float[N, 6] x) => (float[N, 6] y) { y = LpNormalization<p: int = 1>(x) }"),
    ],
    ids=[
        "large epsilon",
        "of another",
        "maximum",
        "from above",
        "unknown size",
        "not kept",
        "p of 1",
    ],
)
def test_leaves_alone(model: ir.Model) -> None:
    declined(model, write_unit_norms)


def test_it_runs_on_integers() -> None:
    """Cosine attention: products of rows of length 1."""
    model = graph(
        """(float[N, 8, 16] x) => (float[N, 8, 8] y) {
            k = MatMul(x, w)
            n = ReduceL2(k, axis)
            d = Clip(n, e)
            u = Div(k, d)
            t = Transpose<perm: ints = [0, 2, 1]>(u)
            z = MatMul(u, t)
            y = Softmax<axis: int = -1>(z)
        }""",
        {"w": draw(16, 16), "axis": np.array([-1], np.int64), "e": np.float32(1e-12)},
    )
    x = np.random.default_rng(0).normal(size=(32, 8, 16)).astype(np.float32)
    result = ptq.quantize(model, [{"x": x}], ptq.Recipe(effort="fast"))
    assert not result.outline.islands
    wanted, found = (run_float(m, {"x": x[:4]})["y"] for m in (model, result.model))
    assert np.square(wanted).sum() / np.square(wanted - found).sum() > 1000
