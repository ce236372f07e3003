"""Printing a diagnosis for people."""

from __future__ import annotations

from rich.console import Console

from ptq.debug.diagnosis import Diagnosis, Measured, Repair
from ptq.debug.network import Loss
from ptq.report.console import decibel, megabytes, percent, print_table, printable

_MOST = 20


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """The worst layers with their causes, then the repair."""
    shown = found.suspects[:_MOST]
    table = [
        (
            suspect.name,
            suspect.op,
            _widths(suspect.weight_bits, suspect.activation_bits),
            decibel(suspect.alone.sqnr_db),
            decibel(suspect.without.sqnr_db),
            decibel(suspect.output_sqnr_db),
            suspect.blame,
        )
        for suspect in shown
    ]
    title = (
        f"{found.model}: {loss_text(found.total)} on {found.samples} samples; "
        f"worst first ({len(shown)} of {len(found.suspects)}; all with --json)"
    )
    columns = ("layer", "op", "bits", "alone", "all but it", "its output", "blame")
    print_table(console, title, columns, table)
    for suspect in shown:
        for cause in suspect.causes:
            console.print(printable(f"{suspect.name}: {cause}"))
    console.print()
    if found.precision_map:
        rows = list(found.precision_map.items())
        print_table(console, "repair", ("layer", "precision"), rows)
    if found.repair is not None:
        _print_repair(found.repair, console)


def _widths(weight: int | None, activation: int | None) -> str:
    parts = (f"w{weight}" if weight else "", f"a{activation}" if activation else "")
    return "".join(parts)


def loss_text(loss: Loss) -> str:
    """The figures of a loss that there are."""
    parts = [f"SQNR {decibel(loss.sqnr_db)}"]
    if loss.kl is not None:
        parts.append(f"KL {loss.kl:.4g}")
    if loss.agreement is not None:
        parts.append(f"same top-1 {percent(loss.agreement)}")
    return ", ".join(parts)


def _print_repair(repair: Repair, console: Console) -> None:
    rows = [
        ("as it is", *_measured(repair.before)),
        ("with the repair", *_measured(repair.after)),
    ]
    title = f"measured on {repair.samples} samples of {repair.measured_on}"
    print_table(console, title, ("", "outputs", "top-1", "size"), rows)
    float_text = "" if repair.float_top1 is None else f" (float {percent(repair.float_top1)})"
    console.print(
        f"the repair takes back {percent(repair.regained)} of the loss{float_text} for "
        f"{100 * repair.growth:+.1f} % of size; expected: {loss_text(repair.predicted)}"
    )


def _measured(found: Measured) -> tuple[str, str, str]:
    return loss_text(found.loss), percent(found.top1), megabytes(found.size_bytes)
