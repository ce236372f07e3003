"""write_mask_as_where: every form of attention mask becomes one boolean Where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ptq.passes.equivalence import largest_difference, run_float
from ptq.passes.write_mask_as_where import write_mask_as_where
from tests.passes.small_graphs import check, declined, graph, ops, rewritten

LOW = np.float32(-3.4e38)
FLOAT = {"zero": np.zeros((), np.float32), "low": LOW, "one": np.ones((), np.float32)}
CONSTANTS = {**FLOAT, "axes": np.array([1]), "infinity": np.float32(-np.inf)}
HEAD = "(float[N, 3, 4] x, bool[N, 4] keep, int64[N, 4] mask) => (float[N, 3, 4] y)"

FORMS = {
    "boolean": "k = Unsqueeze(keep, axes) b = Where(k, zero, low) s = Add(x, b)",
    "boolean, moved later": "b = Where(keep, zero, infinity) k = Unsqueeze(b, axes) s = Add(x, k)",
    "hidden": "n = Not(keep) b = Where(n, low, zero) k = Unsqueeze(b, axes) s = Add(k, x)",
    "zeros and ones": "c = Cast<to = 1>(mask) d = Sub(one, c) b = Mul(d, low) "
    "k = Unsqueeze(b, axes) s = Add(x, k)",
    "zeros and ones, moved early": "i = Unsqueeze(mask, axes) c = Cast<to = 1>(i) d = Sub(one, c) "
    "b = Mul(low, d) s = Add(x, b)",
    "filled": "n = Not(keep) k = Unsqueeze(n, axes) s = Where(k, infinity, x)",
    "filled, guarded": "k = Unsqueeze(keep, axes) s = Where(k, x, infinity)",
    "constant": "s = Add(x, triangle)",
    "two masks": "k = Unsqueeze(keep, axes) b = Where(k, zero, low) c = Add(b, triangle) "
    "s = Add(x, c)",
}


def model(form: str) -> ir.Model:
    triangle = np.where(np.tri(3, 4, 1, dtype=bool), 0, LOW)[None].astype(np.float32)
    end = "z = Softmax(s) n0 = IsNaN(z) y = Where(n0, zero, z)"
    if form != "filled, guarded":
        end = "y = Softmax(s)"
    return graph(f"{HEAD} {{ {FORMS[form]} {end} }}", {**CONSTANTS, "triangle": triangle})


def feeds() -> dict[str, np.ndarray]:
    keep = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    return {"x": x, "keep": keep, "mask": keep.astype(np.int64)}


BIASED = {
    "added": "b = Where(k, zero, low) c = Add(b, bias) s = Add(x, c)",
    "kept": "b = Where(k, bias, low) s = Add(b, x)",
    "hidden": "n = Not(k) b = Where(n, infinity, bias) s = Add(x, b)",
}


@pytest.mark.parametrize("form", BIASED)
def test_a_bias_before_the_mask_is_added_to_the_scores(form: str) -> None:
    bias = np.random.default_rng(2).normal(size=(1, 3, 4)).astype(np.float32)
    text = f"{HEAD} {{ k = Unsqueeze(keep, axes) {BIASED[form]} y = Softmax(s) }}"
    before = graph(text, {**CONSTANTS, "bias": bias})
    after = before.clone()
    assert write_mask_as_where(after.graph) > 0
    check(after)
    assert {name: ops(after)[name] for name in ("Add", "Where")} == {"Add": 1, "Where": 1}
    assert largest_difference(before, after, feeds()).relative < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_becomes_a_boolean_where_of_the_same_meaning(form: str) -> None:
    before = model(form)
    after = before.clone()
    assert write_mask_as_where(after.graph) > 0
    check(after)
    assert write_mask_as_where(after.graph) == 0
    counts = ops(after)
    assert counts["Where"] == 1
    assert not counts.keys() & {"Add", "Mul", "Sub", "IsNaN"}
    where = next(n for n in after.graph if n.op_type == "Where")
    assert where.inputs[0].dtype == ir.DataType.BOOL
    assert np.isfinite(where.inputs[2].const_value.numpy())
    assert largest_difference(before, after, feeds()).relative < 1e-6


def test_a_triangle_of_float_ones_becomes_boolean() -> None:
    text = (
        "(float[N, 4, 4] x) => (float[N, 4, 4] y) { o = Expand(ones, size) t = Trilu<upper = 0>(o) "
        "h = Equal(t, zero) b = Where(h, low, zero) s = Add(x, b) y = Softmax(s) }"
    )
    constants = {**CONSTANTS, "ones": np.ones((1, 1), np.float32), "size": np.array([1, 4, 4])}
    before = graph(text, constants)
    after = rewritten(before, write_mask_as_where)
    assert {n.outputs[0].dtype for n in after.graph if n.op_type == "Trilu"} == {ir.DataType.BOOL}
    x = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    assert largest_difference(before, after, {"x": x}).relative < 1e-6
    assert np.triu(run_float(after, {"x": x})["y"][0], 1).max() == 0


@pytest.mark.parametrize(
    "body",
    [
        "b = Where(k, zero, one) s = Add(x, b) y = Softmax(s)",
        "s = Add(x, slopes) y = Softmax(s)",
        "b = Where(k, zero, low) s = Add(x, b) y = Relu(s)",
        "c = Cast<to = 1>(k) b = Mul(c, one) s = Add(x, b) y = Softmax(s)",
    ],
    ids=["not low", "positions", "no softmax", "small factor"],
)
def test_leaves_alone(body: str) -> None:
    slopes = np.where(np.eye(3, 4) > 0, -0.5, LOW)[None].astype(np.float32)
    text = f"(float[N, 3, 4] x, bool[N, 3, 4] k) => (float[N, 3, 4] y) {{ {body} }}"
    declined(graph(text, {**CONSTANTS, "slopes": slopes}), write_mask_as_where)
