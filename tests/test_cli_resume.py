"""ptq quantize --resume and --memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ptq.cli import main
from ptq.errors import CalibrationError
from ptq.ladder import Step
from ptq.passes.learn_rounding import LearnRounding
from ptq.report.resources import Size, kept_if_interrupted
from tests.conv_net import conv_net, conv_samples


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("512M", 512 << 20), ("2G", 2 << 30), ("1.5kB", 1536), ("7", 7)]
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert Size().convert(text, None, None) == size_bytes


@pytest.mark.parametrize("text", ["", "lots", "-1G", "2X"])
def test_what_is_no_size_says_what_one_is(text: str) -> None:
    with pytest.raises(click.BadParameter, match="512M"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(("error", "stays"), [(CalibrationError, False), (KeyboardInterrupt, True)])
def test_unfinished_work_stays_only_after_an_interruption(
    tmp_path: Path, error: type[BaseException], stays: bool
) -> None:
    with pytest.raises(error), kept_if_interrupted(tmp_path / "out.onnx") as folder:
        folder.mkdir()
        raise error("stop")
    assert (tmp_path / "out.onnx.unfinished").is_dir() == stays


def test_an_interrupted_command_goes_on_and_writes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptq.passes.learning.run import Run

    stages = {"default": (Step("learned blocks", LearnRounding(iterations=3, batch=8, lr=0.1)),)}
    monkeypatch.setattr("ptq.pipeline.LEARNED", stages)
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "model.onnx")
    np.savez("samples.npz", x=conv_samples(16))
    command = ["quantize", "model.onnx", "--calib", "samples.npz", "--precision", "w3a4"]
    command += ["--effort", "default", "--no-measure", "--memory", "1M"]
    learn, learned = Run._learn_block, list[int]()

    def interrupted(self: Run, index: int, block: Any) -> None:
        if index == 1 and learned.count(1) == 0:
            learned.append(index)
            raise KeyboardInterrupt
        learned.append(index)
        learn(self, index, block)

    assert CliRunner().invoke(main, [*command, "-o", "whole.onnx"]).exit_code == 0
    monkeypatch.setattr(Run, "_learn_block", interrupted)
    first = CliRunner().invoke(main, [*command, "-o", "out.onnx"])
    assert first.exit_code == 130
    assert "--resume" in first.stderr
    assert not Path("out.onnx").exists()
    second = CliRunner().invoke(main, [*command, "-o", "out.onnx", "--resume"])
    assert second.exit_code == 0, second.output
    assert learned[:3] == [0, 1, 1]  # block 0 is not learned again
    assert Path("out.onnx").read_bytes() == Path("whole.onnx").read_bytes()
    assert not Path("out.onnx.unfinished").exists()
