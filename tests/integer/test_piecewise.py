"""A Where between functions of the tensor that it tests is a table; one of others is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir import to_proto
from onnxruntime import InferenceSession

import ptq
from ptq.integer.reference import Reference
from tests.passes.small_graphs import draw, graph

ENDS = "h = Gemm(x, w)", "y = Gemm(z, v)"
WEIGHTS = {
    "w": draw(4, 6), "v": draw(6, 3), "limit": np.float32(1), "two": np.float32(2),
    "zero": np.float32(0), "row": draw(6),
}  # fmt: skip
FORMS = {
    "softplus, as torch writes it": "t = Mul(h, two) g = Greater(t, limit) e = Exp(t) "
    "p = Add(e, limit) l = Log(p) d = Div(l, two) z = Where(g, h, d)",
    "between constants": "g = LessOrEqual(zero, h) z0 = Where(g, h, zero) z = Mul(z0, two)",
    "a limit for each channel": "g = Less(h, row) s = Mul(h, two) z = Where(g, s, h)",
    "twice": "g = Greater(h, zero) a = Where(g, h, zero) b = Where(g, two, h) z = Mul(a, b)",
}


def run(form: str) -> ptq.Result:
    text = f"(float[N, 4] x) => (float[N, 3] y) {{ {ENDS[0]} {form} {ENDS[1]} }}"
    words = text.replace(",", " ").replace("(", " ").replace(")", " ").split()
    model = graph(text, {name: array for name, array in WEIGHTS.items() if name in words})
    return ptq.quantize(model, [{"x": draw(64, 4)}], ptq.Recipe(effort="fast"))


@pytest.mark.parametrize("form", FORMS)
def test_becomes_a_table(form: str) -> None:
    result = run(FORMS[form])
    assert not result.outline.islands
    feeds = {"x": draw(64, 4)}
    wanted, found = (
        InferenceSession(to_proto(m).SerializeToString()).run(None, feeds)[0]
        for m in (result.float_model, result.model)
    )
    np.testing.assert_array_equal(Reference(result.program).run(feeds)["y"], found)
    assert np.square(wanted - found).mean() < 1e-3 * np.square(wanted).mean()


def test_functions_of_other_tensors_are_named() -> None:
    result = run("n = Neg(x) k = Gemm(n, w) g = Greater(h, zero) z = Where(g, k, h)")
    assert {island.op_type for island in result.outline.islands} == {"Greater", "Where"}
    assert all("other tensors" in str(island.reason) for island in result.outline.islands)
    feeds = {"x": draw(8, 4)}
    found = InferenceSession(to_proto(result.model).SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(Reference(result.program).run(feeds)["y"], found, rtol=1e-5)


def test_a_test_that_is_a_result_stays_one() -> None:
    text = f"(float[N, 4] x) => (float[N, 6] z, bool[N, 6] g) {{ {ENDS[0]} g = Greater(h, zero) "
    model = graph(text + "z = Where(g, h, zero) }", {k: WEIGHTS[k] for k in ("w", "zero")})
    result = ptq.quantize(model, [{"x": draw(64, 4)}], ptq.Recipe(effort="fast"))
    assert {island.op_type for island in result.outline.islands} == {"Greater", "Where"}
