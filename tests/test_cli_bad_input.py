"""Bad input and bad luck: the exit code, a message that helps, and no file left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from ptq import files
from ptq.cli import main
from tests.small_cnn import SHAPE, small_cnn, write_cnn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cnn(tmp_path)
    return tmp_path


def quantize(folder: Path, *extra: object, model: str = "model.onnx") -> Result:
    arguments = ["quantize", folder / model, "-o", folder / "q.onnx", "--no-measure", *extra]
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(folder: Path, code: int, words: str, *extra: object, model: str = "model.onnx") -> None:
    """The command fails with this code and message and leaves the folder as it was."""
    before = snapshot(folder)
    result = quantize(folder, *extra, model=model)
    assert result.exit_code == code, result.output
    assert words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_truncated_model(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    refused(folder, 3, "not an ONNX model", model="cut.onnx")


def test_text_file(folder: Path) -> None:
    (folder / "text.onnx").write_text("no model at all\n" * 20)
    refused(folder, 3, "not an ONNX model", model="text.onnx")


def test_empty_file(folder: Path) -> None:
    (folder / "empty.onnx").touch()
    refused(folder, 3, "empty", model="empty.onnx")


def test_external_data_outside_the_folder(folder: Path) -> None:
    proto = small_cnn()
    weight = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "../weights.bin", 0, len(weight.raw_data))
    weight.ClearField("raw_data")
    (folder / "out.onnx").write_bytes(proto.SerializeToString())
    refused(folder, 3, "..", model="out.onnx")


def test_negative_dims(folder: Path) -> None:
    proto = small_cnn()
    proto.graph.initializer[0].dims[0] = -6
    (folder / "negative.onnx").write_bytes(proto.SerializeToString())
    refused(folder, 3, "-6", model="negative.onnx")


def test_nan_in_weights(folder: Path) -> None:
    weight = np.ones((6, 3, 3, 3), np.float32)
    weight[2, 1, 0, 0] = np.nan
    onnx.save(small_cnn(weight=weight), folder / "nan.onnx")
    refused(folder, 3, "NaN", model="nan.onnx")


def test_missing_calibration_input(folder: Path) -> None:
    np.savez(folder / "other.npz", y=np.zeros((4, *SHAPE), np.float32), z=np.zeros((4, 2)))
    refused(folder, 2, "x", "--calib", folder / "other.npz")


def test_no_such_calibration_data(folder: Path) -> None:
    refused(folder, 2, "no such file", "--calib", folder / "no.npz")


def test_wrong_shape(folder: Path) -> None:
    np.savez(folder / "wrong.npz", x=np.zeros((4, 3, 8, 9, 2), np.float32))
    refused(folder, 2, "wanted float32[?, 3, 8, 8]", "--calib", folder / "wrong.npz")


def test_nan_in_data(folder: Path) -> None:
    x = np.ones((20, *SHAPE), np.float32)
    x[13, 0, 0, 0] = np.nan
    np.savez(folder / "nan.npz", x=x)
    refused(folder, 2, "13", "--calib", folder / "nan.npz")


def test_pickle_in_data(folder: Path) -> None:
    np.savez(folder / "pickle.npz", x=np.array([{"a": 1}], object))
    refused(folder, 2, "pickle.npz", "--calib", folder / "pickle.npz")


def test_bad_preprocess(folder: Path) -> None:
    refused(folder, 2, "preprocess", "--preprocess", "lightness=3")


def test_evaluation_is_checked_before_calibration(folder: Path) -> None:
    np.savez(folder / "wrong.npz", x=np.zeros((4, 3, 8), np.float32), labels=np.zeros(4, int))
    calib = marking_source(folder)
    refused(folder, 2, "wrong.npz", "--calib", calib, "--eval", folder / "wrong.npz")
    assert not (folder / "read").exists()


def marking_source(folder: Path) -> str:
    """A calibration function that leaves the file `read` when it is called."""
    (folder / "source.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def samples():\n"
        "    Path(__file__).with_name('read').touch()\n"
        "    return [{'x': np.ones((1, 3, 8, 8), np.float32)}]\n"
    )
    return f"{folder / 'source.py'}:samples"


def test_unsupported_op_under_strict_fails_before_calibration(folder: Path) -> None:
    onnx.save(small_cnn(last="Hardmax"), folder / "odd.onnx")
    calib = marking_source(folder)
    refused(folder, 3, "last (Hardmax)", "--strict", "--calib", calib, model="odd.onnx")
    assert not (folder / "read").exists()


def test_exclude_that_matches_nothing(folder: Path) -> None:
    calib = marking_source(folder)
    refused(folder, 2, "'decoder*' matches no node", "--exclude", "decoder*", "--calib", calib)
    refused(folder, 2, "'re:^zz' matches no node", "--include", "re:^zz", "--calib", calib)
    assert not (folder / "read").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_by_permission(folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o555)
    refused(folder, 2, "permissions", "-o", locked / "q.onnx", "--calib", marking_source(folder))
    assert not (folder / "read").exists()


def test_unwritable_output_is_found_before_calibration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdtemp(**options: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    calib = marking_source(folder)
    monkeypatch.setattr(files.tempfile, "mkdtemp", mkdtemp)
    refused(folder, 2, "Permission denied", "--calib", calib)
    assert not (folder / "read").exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_full_for_real(folder: Path, tiny_disk: Path) -> None:
    result = quantize(folder, "-o", tiny_disk / "q.onnx", "--calib", folder / "samples.npz")
    assert result.exit_code == 2, result.output
    assert "No space left" in result.stderr
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize("function", ["_flush", "_move", "_usual_mode"])
def test_disk_full_anywhere_in_the_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, function, full)
    refused(folder, 2, "No space left", "--calib", folder / "samples.npz")


def test_interruption_while_files_are_moved_restores_the_old_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calib = ("--calib", folder / "samples.npz")
    assert quantize(folder, *calib).exit_code == 0
    move, moved = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "q.onnx" and target.parent == folder and not moved:
            moved.append(target)
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    before = snapshot(folder)
    result = quantize(folder, "--bits", 4, "--force", *calib)
    assert result.exit_code == 130, result.output
    assert "interrupted" in result.stderr
    assert moved
    # What is finished stays, in a folder of its own, for --resume.
    after = snapshot(folder)
    kept = {path for path in after if path.parent.name == "q.onnx.unfinished"}
    assert {path: data for path, data in after.items() if path not in kept} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_in_the_middle(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    (folder / "slow.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def samples():\n"
        "    for i in range(1000):\n"
        "        if i == 2:\n"
        "            Path(__file__).with_name('ready').touch()\n"
        "        time.sleep(0.05)\n"
        "        yield {'x': np.full((1, 3, 8, 8), i, np.float32)}\n"
    )
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "ptq.cli", "quantize", "model.onnx"]
    process = subprocess.Popen(
        [*command, "--calib", "slow.py:samples"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": _path(), "TMPDIR": str(temporary)},
    )
    wait_for(folder / "ready", process)
    (folder / "ready").unlink()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    before = snapshot(folder)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert snapshot(folder) == before
    assert list(temporary.iterdir()) == []


def _path() -> str:
    """Where this checkout is found from another working directory."""
    return os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["q.ptq.json", "q.ptq.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_verify_with_a_damaged_side_file(folder: Path, name: str, damage: str) -> None:
    assert quantize(folder, "--calib", folder / "samples.npz").exit_code == 0
    side = folder / name
    if damage == "missing":
        side.unlink()
    elif damage == "truncated":
        side.write_bytes(side.read_bytes()[:100])
    else:
        side.write_text("nothing")
    result = CliRunner().invoke(main, ["verify", str(folder / "q.onnx")])
    assert result.exit_code == 3, result.output
    assert name in result.stderr


def test_compare_models_of_different_networks(folder: Path) -> None:
    proto = small_cnn()
    head = proto.graph.initializer[2]
    head.CopyFrom(numpy_helper.from_array(np.ones((2, 6), np.float32), "head"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(proto, folder / "other.onnx")
    models = [str(folder / "model.onnx"), str(folder / "other.onnx")]
    result = CliRunner().invoke(main, ["compare", *models])
    assert result.exit_code == 2
    assert "models of one network" in result.stderr
