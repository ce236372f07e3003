"""Results are plain data: written as JSON, they read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from ptq.report.gates import Gate
from ptq.report.metrics import Fidelity, Scores
from ptq.report.record import from_json, to_json


def test_results_read_back_as_they_were() -> None:
    gate = Gate("size", "failed", "grew", 0.5, 0.5, 0.01, ("a",))
    assert from_json(to_json(gate), Gate) == gate
    assert from_json(to_json(Fidelity().scores()), Scores) == Fidelity().scores()


def test_what_is_not_finite_is_null() -> None:
    scores = replace(Fidelity().scores(), max_error=float("inf"))
    assert json.loads(to_json(scores))["max_error"] is None


def test_another_class_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        from_json('{"name": 1}', Gate)
