"""calib_data.lint: each finding on data that has the fault, and silence on good data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptq.calib_data import InputSpec, lint, open_calibration
from ptq.calib_data.synthetic import sample

F32 = np.dtype(np.float32)
IMAGE = InputSpec("x", F32, (None, 3, 16, 16))
ANY_IMAGE = InputSpec("x", F32, (None, None, None, None))


def natural(count: int = 20) -> np.ndarray:
    return np.concatenate([sample(IMAGE, np.random.default_rng(i)) for i in range(count)])


def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(20, 3, 16, 16))


FAULTS: dict[str, tuple[Any, InputSpec, set[str]]] = {
    "good": (natural(), IMAGE, set()),
    "good channels last": (
        natural().transpose(0, 2, 3, 1),
        InputSpec("x", F32, (None, 16, 16, 3)),
        set(),
    ),
    "white noise": (noise(), IMAGE, {"noise"}),
    "constant": (np.ones((20, 3, 16, 16)), IMAGE, {"constant", "duplicates"}),
    "few": (natural(15), IMAGE, {"too-few"}),
    "twice the same": (np.concatenate([natural(), natural(1)]), IMAGE, {"duplicates"}),
    "raw pixels": (np.clip(natural() * 40 + 128, 0, 255), IMAGE, {"unnormalised"}),
    "channels last": (natural().transpose(0, 2, 3, 1), ANY_IMAGE, {"layout"}),
    "invented": (None, IMAGE, {"synthetic"}),
    "token ids": (
        np.random.default_rng(0).integers(0, 30000, (20, 9)),
        InputSpec("ids", np.dtype(np.int64), (None, 9)),
        set(),
    ),
    "mask of ones": (
        {
            "ids": np.random.default_rng(0).integers(0, 30000, (20, 9)),
            "attention_mask": np.ones((20, 9)),
        },
        InputSpec("attention_mask", np.dtype(np.int64), (None, 9)),
        set(),
    ),
}


@pytest.mark.parametrize(("source", "spec", "codes"), FAULTS.values(), ids=FAULTS.keys())
def test_findings(source: Any, spec: InputSpec, codes: set[str]) -> None:
    inputs = [spec]
    if isinstance(source, dict):
        inputs.append(InputSpec("ids", np.dtype(np.int64), (None, 9)))
    calibration = open_calibration(source, inputs)
    assert {finding.code for finding in lint(calibration, inputs)} == codes
