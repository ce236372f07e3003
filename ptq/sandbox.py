"""Run one function in a child process that can hang, crash or eat memory without harm to us.

The models are untrusted, and shape inference, version conversion and simplification have known
inputs on which they never return or ask for the whole machine. The child gets a wall-clock limit,
an address-space limit and a file-size limit; its output is bytes, never a pickle.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

JobFunction = Callable[[bytes], bytes]

_BOOT = "import sys; from ptq.sandbox import child_main; child_main(sys.argv[1])"
_ORPHAN_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Limits:
    """What one child process may take.

    `seconds` is wall-clock time, `memory_bytes` is address space on top of what the interpreter and
    the input need, `output_bytes` bounds every file that the child writes.
    """

    seconds: float = 120.0
    memory_bytes: int = 4 << 30
    output_bytes: int = 2 << 30


@dataclass(frozen=True)
class Outcome:
    """The child's output, or the reason why there is none (`output` is None then)."""

    output: bytes | None
    failure: str = ""


def call(function: JobFunction, payload: bytes, limits: Limits | None = None) -> Outcome:
    """Run `function(payload)` in a child and wait; a failure is an Outcome, never an exception.

    `function` must be found by its module and name (no lambda, no closure). An interruption of the
    wait (Ctrl-C) kills the child and is raised again.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="ptq-sandbox-") as folder:
        job = Path(folder)
        (job / "input").write_bytes(payload)
        (job / "job.json").write_text(
            json.dumps(
                {
                    "module": function.__module__,
                    "name": function.__qualname__,
                    "seconds": limits.seconds,
                    "memory_bytes": limits.memory_bytes + 4 * len(payload),
                    "output_bytes": limits.output_bytes,
                }
            )
        )
        return _wait(job, limits)


def _wait(job: Path, limits: Limits) -> Outcome:
    with (job / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=_child_environment(),
            start_new_session=True,
        )
        try:
            code = child.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(None, f"took longer than {limits.seconds:g} s")
        finally:
            _kill_group(child)
    if code == 0:
        return Outcome((job / "output").read_bytes())
    return Outcome(None, _describe_failure(job, code, limits))


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever it started; harmless when all of it has ended."""
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):
        child.kill()
    child.wait()


def _child_environment() -> dict[str, str]:
    """Our environment with our import path and one thread (threads reserve address space)."""
    here = str(Path(__file__).parent.parent)
    paths = [path for path in (*sys.path, here) if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def _describe_failure(job: Path, code: int, limits: Limits) -> str:
    error = job / "error"
    text = error.read_text(errors="replace") if error.exists() else ""
    tail = (job / "stderr").read_bytes()[-2000:].decode(errors="replace").strip()
    if "MemoryError" in text or "bad_alloc" in text + tail or "bad allocation" in text:
        return f"needed more than {limits.memory_bytes / 2**30:.1f} GiB of memory"
    if text:
        return text
    if code == -signal.SIGALRM:
        return f"took longer than {limits.seconds:g} s"
    last_line = tail.splitlines()[-1] if tail else "no message"
    cause = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"{cause} ({last_line[:300]})"


def child_main(folder: str) -> None:
    """Entry point in the child: read the job, limit ourselves, run, write the output."""
    job = Path(folder)
    request = json.loads((job / "job.json").read_text())
    _limit_ourselves(request["seconds"], request["memory_bytes"], request["output_bytes"])
    try:
        function: JobFunction = getattr(importlib.import_module(request["module"]), request["name"])
        output = function((job / "input").read_bytes())
        (job / "output").write_bytes(output)
    except BaseException as error:
        # The text crosses to the parent, the exception object does not.
        message = f"{type(error).__name__}: {error}"
        (job / "error").write_text(message[:2000], errors="replace")
        os._exit(1)
    os._exit(0)


def _limit_ourselves(seconds: float, memory_bytes: int, output_bytes: int) -> None:
    """Set the limits that the kernel enforces, the alarm outliving a killed parent."""
    try:
        import resource
    except ImportError:  # Windows: the parent's wall-clock limit is the only one
        return
    _lower(resource.RLIMIT_AS, memory_bytes)
    _lower(resource.RLIMIT_FSIZE, output_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    signal.alarm(int(seconds) + _ORPHAN_GRACE_SECONDS)


def _lower(which: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (limit, limit))
    except (ValueError, OSError):  # a platform without this limit, such as RLIMIT_AS on macOS
        return
