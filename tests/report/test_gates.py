"""Each gate passes what chance explains or the limits allow, and fails what neither does."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ptq.errors import UsageError
from ptq.report.baseline import Proofs, Speed
from ptq.report.gate_files import Verdicts, junit, markdown, sarif
from ptq.report.gates import (
    Gate,
    Limits,
    accuracy_gate,
    fidelity_gate,
    latency_gate,
    mismatch_gate,
    proof_gates,
    size_gate,
)
from ptq.report.outcomes import Judge, Outcomes

LIMITS = Limits()


def outcomes(right: str = "", noise: tuple[float, ...] = (), judge: Judge = "labels") -> Outcomes:
    return Outcomes(len(right or noise), "digest", judge, right, noise, 100.0)


def changed(samples: int, lost: int, gained: int) -> tuple[Outcomes, Outcomes]:
    """All right but `gained` before; `lost` others are wrong now."""
    before = "0" * gained + "1" * (samples - gained)
    now = "1" * (samples - lost) + "0" * lost
    return outcomes(before), outcomes(now)


@pytest.mark.parametrize(
    ("lost", "gained", "status"),
    [
        (75, 0, "failed"),  # 1.5 points of 5000
        (120, 45, "failed"),  # the same, in noise
        (306, 231, "failed"),  # the same, in much noise
        (60, 60, "passed"),
        (95, 64, "passed"),  # p = 0.0085 against no loss, but 0.5 of the 0.62 points are tolerated
        (26, 20, "passed"),  # chance
        (20, 0, "passed"),  # significant, but 0.4 points are tolerated
    ],
)
def test_accuracy_gate(lost: int, gained: int, status: str) -> None:
    gate = accuracy_gate(*changed(5000, lost, gained), LIMITS)
    assert (gate.name, gate.status) == ("accuracy", status)
    assert gate.measured == pytest.approx((lost - gained) / 5000)


def test_few_samples_do_not_fail_by_chance_and_say_what_they_can_see() -> None:
    gate = accuracy_gate(*changed(20, 3, 0), LIMITS)  # 15 points, but p = 1/8
    assert gate.status == "passed"
    assert "30 points" in gate.message  # 6 of 20


def test_accuracy_by_another_judge_is_not_compared() -> None:
    before, now = changed(10, 0, 0)
    judged = outcomes(now.right, judge="float")
    assert accuracy_gate(before, judged, LIMITS).status == "skipped"
    assert accuracy_gate(judged, judged, LIMITS).name == "agreement"
    assert accuracy_gate(outcomes(), outcomes(), LIMITS).status == "skipped"


@pytest.mark.parametrize(("factor", "status"), [(1.0, "passed"), (1.15, "passed"), (1.6, "failed")])
def test_fidelity_gate(factor: float, status: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.lognormal(size=400)
    now = factor * noise * rng.lognormal(0, 0.2, size=400)
    gate = fidelity_gate(outcomes(noise=tuple(noise)), outcomes(noise=tuple(now)), LIMITS)
    assert gate.status == status
    assert gate.bound is not None
    assert gate.measured is not None
    assert gate.bound <= gate.measured


def test_latency_fails_only_where_the_whole_interval_is_too_slow() -> None:
    slow, unsure = Speed(1.15, (1.11, 1.18), 1), Speed(1.15, (1.02, 1.30), 1)
    assert latency_gate(slow, "before", LIMITS).status == "failed"
    assert latency_gate(unsure, "before", LIMITS).status == "passed"
    assert "2 threads" in latency_gate(Speed(1.0, (1.0, 1.0), 2), "before", LIMITS).message


def test_size_and_mismatches() -> None:
    assert size_gate(1000, 1010, LIMITS).status == "passed"
    assert size_gate(1000, 1011, LIMITS).status == "failed"
    assert mismatch_gate(0, 10, ()).status == "passed"
    assert mismatch_gate(1, 10, ("x: 1 codes",)).status == "failed"


def test_only_new_islands_and_certificates_fail() -> None:
    before = Proofs(("a (Erf): no rule",), (), ("conv1", "conv2"))
    now = Proofs(("a (Erf): no rule", "b (Loop): no rule"), ("gemm",), ("conv2",))
    found = {gate.name: gate for gate in proof_gates(before, now)}
    assert found["islands"].items == ("b (Loop): no rule",)
    assert {name: gate.status for name, gate in found.items()} == {
        "islands": "failed",
        "exactness": "failed",
        "saturation": "passed",
    }


def test_an_alpha_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--alpha"):
        Limits(alpha=0.0)


VERDICTS = Verdicts(
    "models/m odel.onnx",
    "b.json",
    (
        Gate("size", "passed", "as it was"),
        Gate("latency", "skipped", "nothing to time against"),
        Gate("islands", "failed", "2 new", 2, 2, 0, ("<img src=x>|*\x1b[31m", "b")),
    ),
    ("another CPU",),
)


def test_markdown_takes_names_literally() -> None:
    text = markdown(VERDICTS)
    assert "### ptq regress failed" in text
    assert "&lt;img src=x&gt;\\|\\*" in text
    assert "another CPU" in text


def test_junit_has_a_case_a_gate() -> None:
    suite = ElementTree.fromstring(junit(VERDICTS)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase[@name='islands']/failure")
    assert failure is not None
    assert "<img src=x>" in str(failure.get("message"))


def test_sarif_has_what_its_schema_requires() -> None:
    """The required fields, enumerations and references of SARIF 2.1.0, as far as we use it."""
    log = json.loads(sarif(VERDICTS))
    assert log["version"] == "2.1.0"
    assert set(log) <= {"$schema", "version", "runs"}
    (found,) = log["runs"]
    rules = [rule["id"] for rule in found["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert isinstance(found["tool"]["driver"]["name"], str)
    for result in found["results"]:
        assert result["message"]["text"]
        assert result["ruleId"] in rules
        assert result["level"] in ("none", "note", "warning", "error")
        for location in result["locations"]:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"[\w./%~-]+", uri)  # a URI reference has no blanks
            assert all(logical["kind"] for logical in location["logicalLocations"])


def test_junit_counts_are_those_of_its_cases() -> None:
    """Names, attributes and counts that the schema of Jenkins' JUnit reports requires."""
    root = ElementTree.fromstring(junit(VERDICTS))
    assert root.tag == "testsuites"
    for suite in root:
        cases = suite.findall("testcase")
        counts = {"tests": len(cases), "failures": len(suite.findall("*/failure")),
                  "skipped": len(suite.findall("*/skipped")), "errors": 0}  # fmt: skip
        assert {name: int(suite.get(name, -1)) for name in counts} == counts
        assert suite.get("name")
        for case in cases:
            assert set(case.attrib) <= {"name", "classname", "time"}
            assert {child.tag for child in case} <= {"failure", "skipped", "system-out"}


def test_sarif_has_a_result_an_item() -> None:
    run = json.loads(sarif(VERDICTS))["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]][-1] == "ptq/islands"
    first, second = run["results"]
    assert first["ruleId"] == second["ruleId"] == "ptq/islands"
    assert second["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "b"
    place = first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert place == "models/m%20odel.onnx"
