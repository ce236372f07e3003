"""Every long call of the API stops where its callback raises, and leaves nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ptq
from tests.small_cnn import write_cnn


class CancelledError(Exception):
    """What the callback raises."""


def cancel(*_: object) -> None:
    raise CancelledError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model, samples, a quantised model and a baseline of it."""
    made = tmp_path_factory.mktemp("cancel")
    source = write_cnn(made)
    recipe = ptq.Recipe.from_bits(4)
    ptq.quantize(source, str(made / "samples.npz"), recipe).save(made / "q.onnx")
    options = ptq.RegressOptions(ptq.Samples(str(made / "samples.npz")), seconds=0.1)
    ptq.save_baseline(ptq.make_baseline(made / "q.onnx", made, options), made / "b.json")
    return made


def calls(folder: Path) -> dict[str, Callable[[], Any]]:
    source, model, calib = folder / "model.onnx", folder / "q.onnx", str(folder / "samples.npz")
    samples, recipe = ptq.Samples(calib), ptq.Recipe()
    gates = ptq.RegressOptions(samples, seconds=0.1)
    explored = ptq.ExploreOptions(folder / "front")
    budgets = ptq.Budgets(average_bits=4)
    return {
        "quantize": lambda: ptq.quantize(source, calib, recipe, progress=cancel),
        "quantize_within": lambda: ptq.quantize_within(
            source, calib, recipe, budgets, progress=cancel
        ),
        "explore_model": lambda: ptq.explore_model(
            source, calib, recipe, explored, progress=cancel
        ),
        "redo": lambda: ptq.redo(
            source, folder / "q.ptq.json", folder / "again.onnx", progress=cancel
        ),
        "verify_file": lambda: ptq.verify_file(
            model, ptq.VerifyOptions(calib=calib), progress=cancel
        ),
        "compare_files": lambda: ptq.compare_files(source, model, samples, progress=cancel),
        "bench_files": lambda: ptq.bench_files([source, model], samples, progress=cancel),
        "regress_file": lambda: ptq.regress_file(model, folder / "b.json", gates, cancel),
        "make_baseline": lambda: ptq.make_baseline(model, folder, gates, cancel),
        "debug_file": lambda: ptq.debug_file(model, ptq.DebugOptions(samples), cancel),
        "make_page": lambda: ptq.make_page(model, ptq.PageOptions(samples), cancel),
    }


@pytest.mark.parametrize("name", list(calls(Path())))
def test_what_the_callback_raises_comes_out_and_no_file_is_left(folder: Path, name: str) -> None:
    before = sorted(folder.glob("*.*"))
    with pytest.raises(CancelledError):
        calls(folder)[name]()
    assert sorted(folder.glob("*.*")) == before
