"""Norms over several axes, of groups and of instances become layer norms of rows."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import declined, draw, graph, ops, rewritten

import ptq
from ptq.passes.flatten_norms import flatten_norms

IMAGE = "(float[N, 4, 6, 5] x) => (float[N, 4, 6, 5] y)"
ROWS = {"s": draw(4), "b": draw(4, seed=1)}
FORMS = {
    "group": ("GroupNormalization<num_groups = 2, epsilon = 0.01>(x, s, b)", ROWS),
    "instance": ("InstanceNormalization(x, s, b)", ROWS),
    "layer": (
        "LayerNormalization<axis = -3>(x, s, b)",
        {"s": draw(4, 6, 5), "b": draw(4, 6, 5, seed=1)},
    ),
    "rms": ("RMSNormalization<axis = 2>(x, s)", {"s": draw(6, 5)}),
}


def opset(form: str) -> int:
    return 23 if form == "rms" else 21


@pytest.mark.parametrize("form", [form for form in FORMS if form != "rms"])
def test_rows(form: str) -> None:
    node, weights = FORMS[form]
    after = rewritten(graph(f"{IMAGE} {{ y = {node} }}", weights), flatten_norms)
    found = ops(after)
    assert found["LayerNormalization"] == 1
    assert found["Reshape"] == 2
    assert found.get("Mul", 0) == found.get("Add", 0) == (form != "layer")


def test_a_scale_of_ones_and_a_bias_of_zeros_are_left_out() -> None:
    weights = {"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    after = rewritten(graph(f"{IMAGE} {{ y = {FORMS['instance'][0]} }}", weights), flatten_norms)
    assert ops(after) == {"Reshape": 2, "LayerNormalization": 1}


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 4, H, 5] x, float[4] s, float[4] b) => (float[N, 4, H, 5] y)"
        "{ y = GroupNormalization<num_groups = 2>(x, s, b) }",
        f"{IMAGE.replace(' x)', ' x, float[4] s, float[4] b)')}"
        "{ y = InstanceNormalization(x, s, b) }",
    ],
)
def test_leaves_alone_open_sizes_and_computed_scales(text: str) -> None:
    declined(graph(text), flatten_norms)


def test_leaves_alone_the_last_axis() -> None:
    node = "LayerNormalization(x, s, b)"
    declined(graph(f"{IMAGE} {{ y = {node} }}", {"s": draw(5), "b": draw(5)}), flatten_norms)


@pytest.mark.parametrize("form", FORMS)
def test_on_integers(form: str) -> None:
    """Near the float network, and the same in the file as in the reference."""
    node, weights = FORMS[form]
    model = graph(f"{IMAGE} {{ y = {node} }}", weights, opset(form))
    samples = [{"x": draw(16, 4, 6, 5)}]
    result = ptq.quantize(model, samples, ptq.Recipe(strict=True, effort="fast"))
    from onnx_ir import to_proto
    from onnxruntime import InferenceSession

    wanted, found = (
        InferenceSession(to_proto(m).SerializeToString()).run(None, samples[0])[0]
        for m in (result.float_model, result.model)
    )
    assert np.square(wanted - found).mean() < 3e-4 * np.square(wanted).mean()
    from ptq.integer.reference import Reference

    np.testing.assert_array_equal(Reference(result.program).run(samples[0])["y"], found)
