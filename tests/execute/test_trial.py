"""One run of the float model in a child, before anything depends on it."""

import numpy as np
import pytest

from ptq.errors import CalibrationError
from ptq.execute.trial import try_in_child
from ptq.model import load
from tests.graphs import GraphBuilder


def gather(size):
    """A model y = table[x], whose indices must stay below `size`."""
    b = GraphBuilder(np.random.default_rng(0))
    index = b.node("Cast", ["x"], to=7)
    y = b.node("Gather", [b.weight(size, 4), index])
    return load(b.model({"x": (2,)}, {y: (2, 4)}))


def test_a_batch_that_runs_passes_in_silence():
    try_in_child(gather(8), {"x": np.array([[3.0, 7.0]], np.float32)})


def test_what_the_runtime_says_is_passed_on_with_the_shapes():
    with pytest.raises(CalibrationError, match=r"float32\[1, 2\].*out of data bounds"):
        try_in_child(gather(8), {"x": np.array([[3.0, 8.0]], np.float32)})


def test_a_crash_of_the_runtime_is_an_error_like_any_other(monkeypatch):
    import ptq.execute.trial as trial

    monkeypatch.setattr(trial.run_in_child, "__qualname__", "crash")
    monkeypatch.setattr(trial.run_in_child, "__module__", "tests.execute.test_trial")
    with pytest.raises(CalibrationError, match="signal"):
        try_in_child(gather(8), {"x": np.zeros((1, 2), np.float32)})


def crash(payload):
    """Dies as a division by zero does."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGFPE)
