"""The benchmark measures what it says; times themselves are never asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq.errors import CalibrationError, RecipeError, UnsupportedModelError
from ptq.report.benchmark import Benchmark, BenchOptions, bench
from ptq.report.comparison import compare
from ptq.report.session import Session, boundary_grids, open_session
from tests.small_cnn import CLASSES, SHAPE, small_cnn

BATCH = {"x": np.ones((1, *SHAPE), np.float32)}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    onnx.save(small_cnn(), tmp_path / "m.onnx")
    return open_session(tmp_path / "m.onnx", name="first", threads=1)


def test_iterations_are_counted_per_model(session: Session) -> None:
    options = BenchOptions(warmup=1, iterations=7, threads=1)
    found = bench({"a": session, "b": session, "c": session}, BATCH, options)
    assert [t.name for t in found.timings] == ["a", "b", "c"]
    assert [t.iterations for t in found.timings] == [7, 7, 7]
    assert found.speedups[0] == 1
    assert found.rounds >= 3
    assert found.batch == 1
    for timing in found.timings:
        assert 0 < timing.p50_ms <= timing.percentiles["90"] <= timing.percentiles["99"]


class _Slow:
    """Runs a session's handle three times over."""

    def __init__(self, session: Session) -> None:
        self._handle = session.handle

    def __getattr__(self, name: str) -> object:
        return getattr(self._handle, name)

    def run(self, *arguments: object) -> object:
        import time

        time.sleep(0.005)
        return self._handle.run(*arguments)


def test_the_slower_model_has_the_smaller_speedup(session: Session) -> None:
    slow = Session("slow", _Slow(session), {})
    found: Benchmark = bench({"a": session, "b": slow}, BATCH, BenchOptions(0, 9, threads=1))
    assert found.speedups[1] < 0.9
    assert found.speedup_intervals[1][0] <= found.speedups[1] <= found.speedup_intervals[1][1]


def test_options_that_cannot_be() -> None:
    with pytest.raises(RecipeError, match="iterations"):
        BenchOptions(iterations=2)
    with pytest.raises(RecipeError, match="seconds"):
        BenchOptions(seconds=float("nan"))


def test_missing_and_misshapen_inputs_are_explained(session: Session) -> None:
    with pytest.raises(CalibrationError, match="wants input 'x'"):
        session.predict({"y": BATCH["x"]})
    with pytest.raises(CalibrationError, match=r"float32\[1, 2, 8, 8\]"):
        session.predict({"x": BATCH["x"][:, :2]})


def test_a_model_that_does_not_load_is_explained() -> None:
    proto = small_cnn()
    proto.graph.node[1].op_type = "NoSuchOp"
    with pytest.raises(UnsupportedModelError, match="NoSuchOp"):
        open_session(ir.from_proto(proto))


def test_weights_on_disk_are_found(tmp_path: Path) -> None:
    onnx.save(small_cnn(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = ir.load(tmp_path / "m.onnx")
    outputs = open_session(model).predict(BATCH)
    expected = open_session(tmp_path / "m.onnx").predict(BATCH)
    np.testing.assert_array_equal(outputs["logits"], expected["logits"])


def test_grids_come_from_the_metadata() -> None:
    text = '{"scale": 0.5, "zero_point": 10, "low": 0, "high": 255}'
    grids = boundary_grids({"ptq.codes.x": text, "author": "somebody"})
    assert grids["x"].quantize(np.float32([1.0])).tolist() == [12]
    assert list(grids) == ["x"]


def test_compare_pairs_outputs_by_position_if_names_differ(session: Session) -> None:
    proto = small_cnn()
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.output[0].name = "scores"
    other = open_session(ir.from_proto(proto), name="second")
    rng = np.random.default_rng(0)
    data = [({"x": rng.normal(size=(n, *SHAPE)).astype(np.float32)}, None) for n in (3, 5)]
    found = compare(session, other, data)
    assert (found.first, found.second, found.samples) == ("first", "second", 8)
    assert found.outputs["logits"].elements == 8 * CLASSES
    assert found.outputs["logits"].max_error == 0
    assert found.first_top1 is None


def test_compare_counts_right_answers(session: Session) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, *SHAPE)).astype(np.float32)
    labels = session.predict({"x": x})["logits"].argmax(1)
    labels[:4] = (labels[:4] + 1) % CLASSES
    found = compare(session, session, [({"x": x}, labels)])
    assert found.first_top1 == found.second_top1 == 0.6


def test_compare_wants_samples(session: Session) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        compare(session, session, [])
