"""The whole way on the model that ships: accuracy, integers only, the same bytes twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import ptq
from ptq.errors import CalibrationError, OutputError
from ptq.passes.context import Progress
from ptq.targets.inspect_runtime import float_ops

DIGITS = Path(__file__).parents[1] / "calib_data"
MODEL, SAMPLES = DIGITS / "digits_cnn.onnx", DIGITS / "digits_calib.npz"


def evaluate(model: bytes) -> tuple[np.ndarray[Any, Any], float]:
    """Logits and top-1 accuracy on the labelled digits."""
    data = np.load(DIGITS / "digits_eval.npz")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": data["image"]})[0]
    return logits, float((logits.argmax(1) == data["labels"]).mean())


def to_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize(("precision", "least_sqnr_db"), [("w8a8", 30), ("w4a8", 22), ("w3a8", 15)])
def test_digits_keep_their_accuracy_on_integers(precision: str, least_sqnr_db: float) -> None:
    result = ptq.quantize(MODEL, SAMPLES, ptq.Recipe.preset(precision).replace(effort="fast"))
    quantised = to_bytes(result.model)
    wanted, float_accuracy = evaluate(MODEL.read_bytes())
    logits, accuracy = evaluate(quantised)
    sqnr_db = 10 * np.log10(np.square(wanted).sum() / np.square(wanted - logits).sum())
    assert sqnr_db > least_sqnr_db
    assert accuracy > float_accuracy - 0.01
    assert float_ops(quantised) == []
    assert not result.outline.islands
    assert all(certificate.exact for certificate in result.program.certificates)


def test_eight_bit_weights_saturate_on_no_cpu_unless_one_with_vnni_is_named() -> None:
    anywhere = ptq.quantize(MODEL, SAMPLES, ptq.Recipe.preset("w8a8"))
    assert all(certificate.pair_safe for certificate in anywhere.program.certificates)
    named = ptq.quantize(MODEL, SAMPLES, ptq.Recipe.preset("w8a8").replace(cpu="vnni"))
    assert not all(certificate.pair_safe for certificate in named.program.certificates)


def test_second_order_rounding_beats_nearest() -> None:
    wanted, _ = evaluate(MODEL.read_bytes())
    errors = []
    for rounding in ("nearest", "gptq"):
        recipe = ptq.Recipe.preset("w3a8").replace(
            rounding=rounding, bias_correction=False, effort="fast"
        )
        logits, _ = evaluate(to_bytes(ptq.quantize(MODEL, SAMPLES, recipe).model))
        errors.append(float(np.square(wanted - logits).sum()))
    assert errors[1] < 0.5 * errors[0]


def test_bias_correction_lowers_the_error_of_nearest_rounding() -> None:
    wanted, _ = evaluate(MODEL.read_bytes())
    errors = []
    for bias_correction in (False, True):
        recipe = ptq.Recipe.preset("w3a8").replace(
            rounding="nearest", bias_correction=bias_correction, effort="fast"
        )
        logits, _ = evaluate(to_bytes(ptq.quantize(MODEL, SAMPLES, recipe).model))
        errors.append(float(np.square(wanted - logits).sum()))
    assert errors[1] < errors[0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    recipe = ptq.Recipe.from_bits(4).replace(samples=32, seed=3, effort="fast")
    first, second = (to_bytes(ptq.quantize(MODEL, SAMPLES, recipe).model) for _ in range(2))
    assert first == second


def test_save_writes_a_model_that_runs_and_refuses_to_overwrite(tmp_path: Path) -> None:
    result = ptq.quantize(
        MODEL, SAMPLES, ptq.Recipe.from_bits(4).replace(samples=16, effort="fast")
    )
    out = tmp_path / "digits.onnx"
    result.save(out)
    assert {p.name for p in tmp_path.iterdir()} == {
        "digits.onnx", "digits.ptq.json", "digits.ptq.safetensors"
    }  # fmt: skip
    assert evaluate(out.read_bytes())[1] > 0.9
    with pytest.raises(OutputError):
        result.save(out)
    result.save(out, force=True)


def test_progress_tells_every_stage_and_can_cancel() -> None:
    seen: list[str] = []

    class CancelledError(Exception):
        pass

    def watch(progress: Progress) -> None:
        seen.append(progress.stage)
        if progress.stage == "round weights":
            raise CancelledError

    with pytest.raises(CancelledError):
        ptq.quantize(MODEL, SAMPLES, ptq.Recipe(samples=16), progress=watch)
    assert {"prepare", "collect ranges", "collect second moments"} <= set(seen)


def test_samples_that_do_not_fit_are_refused_before_anything_runs() -> None:
    wrong = [{"image": np.zeros((2, 3, 16, 16), np.float32)}]
    with pytest.raises(CalibrationError, match="image"):
        ptq.quantize(MODEL, wrong, ptq.Recipe())


def test_without_samples_synthetic_ones_are_made() -> None:
    result = ptq.quantize(MODEL, None, ptq.Recipe.preset("w8a8"))
    assert result.samples > 0
    assert not result.outline.islands


def test_integer_boundaries_take_and_give_codes() -> None:
    recipe = ptq.Recipe.preset("w8a8").replace(samples=16, io="integer")
    result = ptq.quantize(MODEL, SAMPLES, recipe)
    session = ort.InferenceSession(to_bytes(result.model), providers=["CPUExecutionProvider"])
    image = np.load(DIGITS / "digits_eval.npz")["image"][:8]
    grid = result.plan.activations["image"]
    name = session.get_inputs()[0].name
    (codes,) = session.run(None, {name: grid.quantize(image)})
    assert codes.dtype == np.uint8
    floats = ptq.quantize(MODEL, SAMPLES, recipe.replace(io="float")).model
    plain = ort.InferenceSession(to_bytes(floats), providers=["CPUExecutionProvider"])
    (logits,) = plain.run(None, {"image": image})
    np.testing.assert_array_equal(result.plan.activations["logits"].dequantize(codes), logits)


def test_weights_beside_the_model_change_nothing(tmp_path: Path) -> None:
    """Here of a convolution, and of a table with more channels than simplification reads."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 3, 8, 8] x) => (float[N, 1100, 4, 4] y) {
        c = Conv <strides = [2, 2]> (x, weight)
        s = Sigmoid(c)
        y = Mul(s, scale)
    }""")
    rng = np.random.default_rng(0)
    for name, shape in (("weight", (1100, 3, 2, 2)), ("scale", (1100, 1, 1))):
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "within.onnx")
    onnx.save(model, tmp_path / "beside.onnx", save_as_external_data=True, size_threshold=0)
    samples = [{"x": rng.normal(size=(8, 3, 8, 8)).astype(np.float32)}]
    recipe = ptq.Recipe(rounding="nearest", effort="fast")
    within, beside = (
        to_bytes(ptq.quantize(tmp_path / f"{name}.onnx", samples, recipe).model)
        for name in ("within", "beside")
    )
    assert within == beside
