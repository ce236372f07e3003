"""An interrupted run goes on where it stopped, and ends in the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import ptq
from ptq.checkpoints import Checkpoints, run_key
from ptq.ladder import Step
from ptq.model import load
from ptq.opening import RunOptions
from ptq.passes.context import Progress
from ptq.passes.learn_rounding import LearnRounding
from ptq.plan import Plan
from ptq.recipe import Recipe
from tests.conv_net import conv_net, conv_samples
from tests.small_cnn import small_cnn

RECIPE = Recipe(weight_bits=3, activation_bits=4, samples=32, effort="default")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"default": (Step("learned blocks", LearnRounding(iterations=4, batch=8, lr=0.1)),)}
    monkeypatch.setattr("ptq.pipeline.LEARNED", steps)


def quantised(work: Path, resume: bool, heard: Callable[[Progress], None]) -> Plan:
    run = RunOptions(work, resume)
    samples = {"x": conv_samples(32)}
    return ptq.quantize(conv_net(), samples, RECIPE, progress=heard, how=run).plan


def stop_after(steps: int, heard: list[Progress]) -> Callable[[Progress], None]:
    """An interruption in the middle of a block."""

    def report(progress: Progress) -> None:
        if progress.stage.startswith("learn"):
            heard.append(progress)
        if len(heard) > steps:
            raise KeyboardInterrupt

    return report


def test_a_resumed_run_skips_what_is_done_and_ends_in_the_same_plan(tmp_path: Path) -> None:
    whole: list[Progress] = []
    expected = quantised(tmp_path / "a", False, stop_after(10**9, whole))
    first: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        quantised(tmp_path / "b", False, stop_after(6, first))
    second: list[Progress] = []
    heard: list[str] = []

    def report(progress: Progress) -> None:
        heard.append(progress.stage)
        stop_after(10**9, second)(progress)

    found = quantised(tmp_path / "b", True, report)
    assert len(second) == len(whole) - 4  # one block of four steps was finished
    assert "collect second moments" not in heard
    expected.save(tmp_path / "expected")
    found.save(tmp_path / "found")
    assert (tmp_path / "expected").read_bytes() == (tmp_path / "found").read_bytes()


def test_without_resume_everything_is_done_again(tmp_path: Path) -> None:
    first: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        quantised(tmp_path, False, stop_after(6, first))
    again: list[Progress] = []
    quantised(tmp_path, False, stop_after(10**9, again))
    assert again[0].done == 1


def with_weight(folder: Path, scale: float) -> ir.Model:
    """One whose weights lie in a file beside it."""
    weight = np.full((6, 3, 3, 3), scale, np.float32)
    path = folder / "m.onnx"
    for old in folder.glob("m.*"):
        old.unlink()
    onnx.save(
        small_cnn(weight=weight), path, save_as_external_data=True, size_threshold=0,
        location="m.data",
    )  # fmt: skip
    return load(path)


def test_another_run_never_takes_it_up(tmp_path: Path) -> None:
    batch = {"x": np.zeros((2, 3), np.float32)}
    key = run_key(with_weight(tmp_path, 2.0), Recipe(), [batch])
    model = with_weight(tmp_path, 1.0)
    keys = {
        key,
        run_key(model, Recipe(), [batch]),
        run_key(model, Recipe(seed=1), [batch]),
        run_key(model, Recipe(), [{"x": np.ones((2, 3), np.float32)}]),
    }
    assert len(keys) == 4
    one, other, *_ = (Checkpoints(tmp_path, key) for key in keys)
    one.save("stage", 3, Plan())
    assert one.load("stage")[0] == 3
    assert other.load("stage") == (0, None)
    assert one.load("another stage") == (0, None)


def test_a_half_written_plan_is_not_taken_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "k")
    checkpoints.save("stage", 1, Plan())
    (path,) = tmp_path.iterdir()
    path.rename(path.with_suffix(".unfinished"))
    assert checkpoints.load("stage") == (0, None)
