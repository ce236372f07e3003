"""ONNX's own node tests: no operator in the table may fail one."""

from __future__ import annotations

import sys
from typing import Any

import onnx_ir as ir
import pytest

from ptq.errors import UnsupportedModelError
from ptq.execute.conformance import Outcome, by_reason, node_tests, table
from ptq.execute.differentiable import float_ops
from ptq.execute.differentiable.tensors import TYPES

LIMITS = (
    *(f"element type {kind.name}" for kind in ir.DataType if kind not in TYPES),
    "element type object",  # strings
    "Dropout (Dropout): training_mode is true",
    "differentiable executor: opset 1",
)
"""Everything that may be declined; a new limit has to be written down here."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(node_tests())


def test_no_operator_in_the_table_fails(
    outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{table(outcomes)}\n")
    assert [o.name for o in outcomes if o.verdict == "failed"] == []
    # onnx 1.23 has 1884 node tests, of which 1328 apply; older versions have fewer.
    assert sum(o.verdict == "passed" for o in outcomes) > len(outcomes) // 2


def test_only_stated_limits_decline(outcomes: list[Outcome]) -> None:
    reasons = {reason for verdict, reason in by_reason(outcomes) if verdict == "declined"}
    assert {reason for reason in reasons if reason not in LIMITS} == set()


def run_relu() -> Outcome:
    return next(outcome for outcome in node_tests("test_relu") if outcome.name == "test_relu")


def test_a_wrong_operator_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(operands: Any, node: Any) -> Any:
        return operands[0] + 0.1

    monkeypatch.setitem(float_ops.FLOAT_OPS, "Relu", wrong)
    outcome = run_relu()
    assert outcome.verdict == "failed"
    assert "test_relu" in table([outcome])


def test_a_wrong_type_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(operands: Any, node: Any) -> Any:
        return operands[0].relu().double()

    monkeypatch.setitem(float_ops.FLOAT_OPS, "Relu", wrong)
    outcome = run_relu()
    assert (outcome.verdict, outcome.reason[:9]) == ("failed", "TypeError")


def test_a_missing_operator_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(float_ops.FLOAT_OPS, "Relu")
    outcome = run_relu()
    assert (outcome.verdict, outcome.reason) == ("not applicable", "Relu")


def test_a_declined_value_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline(operands: Any, node: Any) -> Any:
        raise UnsupportedModelError("it is Tuesday; wanted another day")

    monkeypatch.setitem(float_ops.FLOAT_OPS, "Relu", decline)
    outcome = run_relu()
    assert outcome.verdict == "declined"
    assert "limit: it is Tuesday: 1 (test_relu)" in table([outcome])
