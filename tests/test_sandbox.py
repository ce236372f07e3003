"""A child that hangs, crashes or eats memory is a sentence in the parent, nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptq.sandbox import Limits, call

QUICK = Limits(seconds=20, memory_bytes=1 << 30)


def double(payload: bytes) -> bytes:
    return payload * 2


def hang(payload: bytes) -> bytes:
    while True:
        time.sleep(1)


def eat_memory(payload: bytes) -> bytes:
    return bytes(len(bytearray(8 << 30)))


def crash(payload: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def leave(payload: bytes) -> bytes:
    sys.exit(3)


def complain(payload: bytes) -> bytes:
    raise ValueError("conv1: no weights")


def fill_disk(payload: bytes) -> bytes:
    return bytes(64 << 20)


def test_the_output_comes_back() -> None:
    assert call(double, b"abc", QUICK).output == b"abcabc"


def modules(payload: bytes) -> bytes:
    return " ".join(sys.modules).encode()


def test_start_up_is_cheap() -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "torch", "tvm"}
    assert heavy.isdisjoint(call(modules, b"", QUICK).output.decode().split())


def test_a_hang_ends_at_the_limit_and_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    outcome = call(report_and_hang, str(pid_file).encode(), Limits(seconds=5))
    assert outcome.output is None
    assert outcome.failure == "took longer than 5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_memory_is_bounded() -> None:
    assert "memory" in call(eat_memory, b"", QUICK).failure


@pytest.mark.parametrize(
    ("function", "text"),
    [(crash, "signal 11"), (leave, "SystemExit: 3"), (complain, "ValueError: conv1: no weights")],
)
def test_failures_are_described(function: object, text: str) -> None:
    outcome = call(function, b"", QUICK)  # type: ignore[arg-type]
    assert outcome.output is None
    assert text in outcome.failure


def test_output_is_bounded() -> None:
    assert call(fill_disk, b"", Limits(seconds=20, output_bytes=1 << 20)).output is None


def test_a_module_in_the_working_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert call(double, b"a", QUICK).output == b"aa"


def test_ctrl_c_kills_the_child(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from ptq.sandbox import Limits, call\n"
        "from test_sandbox import report_and_hang\n"
        f"call(report_and_hang, {str(tmp_path / 'pid').encode()!r}, Limits(seconds=60))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE
    )
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 120
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(pid_file.read_text())
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=60)
    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def report_and_hang(payload: bytes) -> bytes:
    Path(payload.decode()).write_text(str(os.getpid()))
    return hang(payload)
