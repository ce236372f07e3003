"""Gates as Markdown for people, and as JUnit XML and SARIF for the CI that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ptq import __version__
from ptq.report.gates import Gate
from ptq.report.plain_markdown import literal

_MARKS = {"passed": "✅", "failed": "❌", "skipped": "⚪"}
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True)
class Verdicts:
    """What the files are made from. notes: sentences that belong to no gate."""

    model: str
    baseline: str
    gates: Sequence[Gate]
    notes: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """No gate failed."""
        return all(gate.status != "failed" for gate in self.gates)


def markdown(verdicts: Verdicts) -> str:
    """A table of the gates, with what is new and at fault below it."""
    title = "passed" if verdicts.passed else "failed"
    lines = [
        f"### ptq regress {title}: {literal(verdicts.model)}",
        "",
        "| | gate | result |",
        "|---|---|---|",
        *(f"| {_MARKS[g.status]} | {g.name} | {literal(g.message)} |" for g in verdicts.gates),
    ]
    for gate in verdicts.gates:
        if gate.status == "failed" and gate.items:
            lines += ["", f"**{gate.name}**", ""]
            lines += [f"- {literal(item)}" for item in gate.items]
    for note in verdicts.notes:
        lines += ["", literal(note)]
    return "\n".join(lines) + "\n"


def junit(verdicts: Verdicts) -> str:
    """JUnit XML: one suite, one case a gate."""
    import junitparser

    suite = junitparser.TestSuite("ptq regress")
    for gate in verdicts.gates:
        case = junitparser.TestCase(gate.name, classname=_plain(verdicts.model))
        text = _plain("\n".join((gate.message, *gate.items)))
        if gate.status == "failed":
            case.result = [junitparser.Failure(text, type_="gate")]
        elif gate.status == "skipped":
            case.result = [junitparser.Skipped(text)]
        else:
            case.system_out = text
        suite.add_testcase(case)
    document = junitparser.JUnitXml()
    document.add_testsuite(suite)
    return str(document.tostring().decode())


def _plain(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def sarif(verdicts: Verdicts) -> str:
    """SARIF 2.1.0: one rule a gate; a failed gate is one result, or one for each item at fault.

    The model's file is the location, and the item is its logical location.
    """
    failed = [gate for gate in verdicts.gates if gate.status == "failed"]
    driver = {
        "name": "ptq",
        "version": __version__,
        "rules": [
            {"id": f"ptq/{g.name}", "shortDescription": {"text": f"the {g.name} gate"}}
            for g in verdicts.gates
        ],
    }
    results = [
        _result(gate, verdicts.model, item) for gate in failed for item in gate.items or ("",)
    ]
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode() + "\n"


def _result(gate: Gate, model: str, item: str) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(model)}}}
    if item:
        location["logicalLocations"] = [{"fullyQualifiedName": item, "kind": "element"}]
    return {
        "ruleId": f"ptq/{gate.name}",
        "level": "error",
        "message": {"text": f"{gate.message}: {item}" if item else gate.message},
        "locations": [location],
    }


def _uri(path: str) -> str:
    from urllib.parse import quote

    return quote(path.replace("\\", "/"))
