"""Layer norm and RMS norm on integers: found in every form, exact everywhere, near the float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from ptq.execute.differentiable import ProgramGraph, to_tensor
from ptq.integer.outline import outline
from ptq.integer.program import Normalize
from ptq.integer.reference import Reference
from ptq.passes.prepare import prepare
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets import TARGETS
from tests.execute.small_programs import assert_equal_codes

Array = np.ndarray[Any, Any]
ROOT = "v = ReduceMean(q, axis) e = Add(v, eps) r = Sqrt(e)"
CENTRED = "m = ReduceMean(x, axis) c = Sub(x, m)"
FORMS = {
    "operator": "y = LayerNormalization<epsilon = 0.001>(x, scale, bias)",
    "pow, div": f"{CENTRED} q = Pow(c, two) {ROOT} d = Div(c, r) s = Mul(d, scale) "
    "y = Add(s, bias)",
    "square, reciprocal": f"{CENTRED} q = Mul(c, c) {ROOT} i = Reciprocal(r) d = Mul(i, c) "
    "s = Mul(scale, d) y = Add(bias, s)",
    "rms": f"q = Mul(x, x) {ROOT} d = Div(x, r) y = Mul(d, scale)",
    "rms, no scale": f"q = Pow(x, two) {ROOT} y = Div(x, r)",
}


def model(form: str, n: int) -> onnx.ModelProto:
    rng = np.random.default_rng(n)
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, T, {n}] x) => (float[N, T, {n}] y)'
    )
    proto = onnx.parser.parse_model(f"{text} {{ {FORMS[form]} }}")
    constants = {
        "scale": rng.normal(1, 0.3, n),
        "bias": rng.normal(0, 0.3, n),
        "eps": np.float32(1e-3),
        "two": np.float32(2),
    }
    for name, array in constants.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        proto.graph.initializer.append(tensor)
    axis = onnx.numpy_helper.from_array(np.array([-1]), "axis")
    proto.graph.initializer.append(axis)
    return proto


def rows(n: int) -> Array:
    """Ordinary rows, one with an outlier, a nearly constant one, a constant one, zeros."""
    x = np.random.default_rng(1).normal(size=(12, 5, n)).astype(np.float32)
    x[0, 0, 0] = 9
    x[0, 1] = 0.5
    x[0, 1, -1] = 0.55
    x[0, 2] = 1.0
    x[0, 3] = 0
    return x


def reference_float(form: str, x: Array, proto: onnx.ModelProto) -> Array:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    x = x.astype(np.float64)
    centred = x if form.startswith("rms") else x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    y = y if form == "rms, no scale" else y * constants["scale"]
    return y if form.startswith("rms") else y + constants["bias"]


CASES = [(form, 48) for form in FORMS] + [(f, n) for f in ("operator", "rms") for n in (2, 4096)]
CASES += [("operator", 2**16)]


@pytest.mark.parametrize(("form", "n"), CASES)
def test_every_form_is_one_step_within_one_code_of_the_float(form: str, n: int) -> None:
    proto = model(form, n)
    result = quantize(proto, [{"x": rows(n)}], Recipe(calib_method="minmax"))
    assert not result.outline.islands
    (step,) = [s for s in result.program.steps if isinstance(s, Normalize)]
    x = result.program.codes[step.input]
    wide = np.random.default_rng(2).integers(0, 256, (4, 3, n)).astype(np.uint8)
    narrow = np.random.default_rng(3).integers(126, 131, (4, 3, n)).astype(np.uint8)
    for codes in (wide, narrow):  # the whole range of codes, and rows of few distinct ones
        feeds = {"x": x.dequantize(codes)}
        found = Reference(result.program).run_codes(feeds)
        expected = result.program.codes["y"].quantize(reference_float(form, feeds["x"], proto))
        assert np.abs(found["y"].astype(int) - expected).max() <= 1
        # long rows leave few bits for the gain
        assert (found["y"] != expected).mean() < (0.05 if n >= 4096 else 0.01)


@pytest.mark.parametrize(("form", "n"), [("operator", 2), ("operator", 768), ("rms", 48)])
def test_targets_and_torch_give_the_codes_of_the_reference(form: str, n: int) -> None:
    import onnxruntime as ort

    result = quantize(model(form, n), [{"x": rows(n)}], Recipe())
    feeds = {"x": 2 * rows(n)}
    expected = Reference(result.program).run(feeds)["y"]
    for target in ("onnx", "onnx-strict"):
        proto = ir.to_proto(TARGETS[target](result.program))
        session = ort.InferenceSession(proto.SerializeToString())
        np.testing.assert_array_equal(session.run(None, feeds)[0], expected, target)
    float_like = TARGETS["onnx-qdq"](result.program)
    session = ort.InferenceSession(ir.to_proto(float_like).SerializeToString())
    step = result.program.codes["y"].scale
    assert np.abs(session.run(None, feeds)[0] - expected).max() <= 1.01 * step
    assert_equal_codes(ProgramGraph(result.program), result.program, feeds)


def test_gradients_are_those_of_the_float_norm() -> None:
    result = quantize(model("operator", 48), [{"x": rows(48)}], Recipe(calib_method="minmax"))
    scale, bias = (
        torch.tensor(onnx.numpy_helper.to_array(t))
        for t in model("operator", 48).graph.initializer
        if t.name in ("scale", "bias")
    )
    x = to_tensor(rows(48)[1:]).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (ProgramGraph(result.program).run(raw={"x": x}).raw["y"] * weight).sum().backward()
    ours = x.grad.clone()
    x.grad = None
    (torch.nn.functional.layer_norm(x, (48,), scale, bias, 1e-3) * weight).sum().backward()
    # the codes' rows differ from the float ones by rounding
    assert torch.nn.functional.cosine_similarity(ours.ravel(), x.grad.ravel(), 0) > 0.995


def test_what_is_read_elsewhere_is_no_pattern() -> None:
    proto = model("pow, div", 8)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("v", 1, ["N", "T", 1]))
    sketch = outline(prepare(ir.from_proto(proto)), Recipe())
    assert not [u for u in sketch.units if u.kind == "norm"]


def test_a_norm_can_be_excluded() -> None:
    sketch = outline(prepare(ir.from_proto(model("operator", 8))), Recipe(exclude=("Layer*",)))
    assert [i.reason for i in sketch.islands] == ["excluded by the user"]
