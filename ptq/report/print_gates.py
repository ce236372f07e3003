"""Printing the verdicts of the gates for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console

from ptq.report.console import print_table, printable
from ptq.report.gates import Gate


class Judged(Protocol):
    """A model against its baseline."""

    @property
    def model(self) -> str:
        """The model's file."""

    @property
    def baseline(self) -> str:
        """The baseline's file."""

    @property
    def gates(self) -> Sequence[Gate]:
        """The verdicts."""

    @property
    def notes(self) -> Sequence[str]:
        """What belongs to no gate."""


def print_regression(found: Judged, console: Console) -> None:
    """One row a gate, then what is at fault."""
    rows = [(gate.status, gate.name, gate.message) for gate in found.gates]
    title = f"{found.model} against {found.baseline}"
    print_table(console, title, ("", "gate", "result"), rows)
    for gate in found.gates:
        if gate.status == "failed" and gate.items:
            print_table(console, f"{gate.name}: at fault", ("",), [(item,) for item in gate.items])
    for note in found.notes:
        console.print(printable(note))
