"""Printing results for people: rich tables on standard output."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ptq.report.benchmark import Benchmark, Timing
from ptq.report.comparison import Comparison
from ptq.report.metrics import MeasuredAccuracy, Scores
from ptq.report.perplexity import Perplexity
from ptq.report.rungs import COLUMNS, rung_rows
from ptq.report.summary import IslandRow, Layer, Report, largest_int32
from ptq.report.verification import Verification

_PIPE_WIDTH = 110
_MOST_ROWS = 30


class _Console(Console):
    """Lets a closed pipe be the caller's business; rich exits with 1, which means a failed gate."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    """A console that takes every text literally: names in models are not markup."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else _PIPE_WIDTH
    return _Console(file=file, markup=False, emoji=False, highlight=False, width=width)


def printable(text: object) -> str:
    """The text without control characters, which could steer a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def decibel(value: float | None) -> str:
    """'19.3 dB', or '-' where it is infinite or unknown."""
    return "-" if value is None else f"{value:.1f} dB"


def percent(value: float | None) -> str:
    """'98.5 %', or '-'."""
    return "-" if value is None else f"{100 * value:.2f} %"


def megabytes(size: int) -> str:
    """Size in MB or kB, decimal."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """A title and a plain table; columns of numbers are right-aligned."""
    made = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(
            isinstance(row[index], int) or row[index] == "" for row in rows
        )
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(printable(cell) for cell in row))
    console.print(printable(title), style="bold")
    console.print(made)
    console.print()


def print_report(report: Report, console: Console) -> None:
    """What `ptq quantize` prints."""
    ratio = report.float_bytes / max(report.quantized_bytes, 1)
    rows: list[tuple[str, str, str]] = [
        (
            "size",
            megabytes(report.float_bytes),
            f"{megabytes(report.quantized_bytes)} ({ratio:.1f} x smaller)",
        )
    ]
    if report.comparison is not None:
        rows += _comparison_rows(report.comparison)
    if report.latency is not None:
        rows += _latency_rows(report.latency)
    title = f"{report.model}: {report.precision} for {report.target}, {report.samples} samples"
    kind = "integer" if report.group_size is None else "weights only"
    print_table(console, title, ("", "float", kind), rows)
    if report.comparison is not None:
        console.print(f"measured on {report.comparison.samples} samples of {report.measured_on}")
        console.print()
    if report.ladder:
        title = "what each stage gained, on held-out calibration samples"
        print_table(console, title, COLUMNS, rung_rows(report.ladder))
    if report.group_size is None:
        _print_operators(report.layers, console)
        console.print(certificate_line(report.layers, len(report.islands)))
    else:
        _print_products(report.layers, report.group_size, console)
    print_islands(report.islands, console)
    for lint in report.lints:
        console.print(printable(f"samples: {lint.message} [{lint.code}]"))


def _comparison_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    rows = []
    if comparison.first_top1 is not None:
        rows.append(
            ("top-1 accuracy", percent(comparison.first_top1), percent(comparison.second_top1))
        )
    for name, scores in comparison.outputs.items():
        rows.append((f"output {name}", "", _scores_text(scores)))
    return rows


def _latency_rows(latency: Benchmark) -> list[tuple[str, str, str]]:
    first, second = latency.timings[:2]
    low, high = latency.speedup_intervals[1]
    speed = f"{second.p50_ms:.3f} ms ({latency.speedups[1]:.2f} x, {low:.2f} to {high:.2f})"
    batch = f"batch {latency.batch}, {latency.threads} threads"
    return [
        (f"latency, {batch}", f"{first.p50_ms:.3f} ms", speed),
        ("  p90 / p95 / p99", _tails(first), _tails(second)),
    ]


def _tails(timing: Timing) -> str:
    return " / ".join(f"{ms:.3f}" for p, ms in timing.percentiles.items() if p != "50") + " ms"


def _scores_text(scores: Scores) -> str:
    if scores.max_error == 0:
        return "equal"
    cosine = "-" if scores.cosine is None else f"{scores.cosine:.5f}"
    text = f"SQNR {decibel(scores.sqnr_db)}, cosine {cosine}"
    agreement = scores.top1_agreement
    return text if agreement is None else f"{text}, same top-1 {percent(agreement)}"


def _print_operators(layers: Sequence[Layer], console: Console) -> None:
    kinds = Counter((layer.op, layer.weight_bits, layer.output_bits) for layer in layers)
    rows = [(op, count, w or "", a or "") for (op, w, a), count in kinds.most_common()]
    columns = ("step", "count", "weight bits", "output bits")
    print_table(console, "integer steps", columns, rows)


def _print_products(layers: Sequence[Layer], group_size: int, console: Console) -> None:
    rows = [(layer.name, layer.weight_bits or "", layer.note) for layer in layers]
    print_table(console, "products with weights of few bits", ("node", "bits", "error"), rows)
    console.print(
        f"weights only, as was asked: {len(layers)} products have weights of few bits in groups of "
        f"{group_size}; activations and everything else stay float"
    )


def certificate_line(layers: Sequence[Layer], islands: int) -> str:
    """One sentence about the proofs."""
    certified = [layer for layer in layers if layer.exact is not None]
    exact = sum(bool(layer.exact) for layer in certified)
    safe = sum(bool(layer.pair_safe) for layer in certified)
    return (
        f"certificates: {exact} of {len(certified)} requantisations proved exact, largest "
        f"int32 accumulator {largest_int32(certified)} (limit 2147483647), {safe} of "
        f"{len(certified)} safe on CPUs without VNNI; {islands} float islands"
    )


def print_islands(islands: Sequence[IslandRow], console: Console) -> None:
    """What stays float, and why."""
    if islands:
        rows = [(i.name, i.op_type, i.reason) for i in islands]
        print_table(console, "float islands", ("node", "op", "reason"), rows)


def print_layers(layers: Sequence[Layer], console: Console) -> None:
    """One row a step."""
    columns = ("step", "op", "w bits", "in", "out", "accumulator", "exact", "note")
    rows = [
        (
            layer.name,
            layer.op,
            layer.weight_bits or "",
            layer.input_bits or "",
            layer.output_bits or "",
            "" if layer.accumulator_bound is None else layer.accumulator_bound,
            "" if layer.exact is None else "yes" if layer.exact else "no",
            layer.note,
        )
        for layer in layers
    ]
    print_table(console, "steps", columns, rows)


def print_verification(found: Verification, console: Console) -> None:
    """Mismatches, and nearness to the float model tensor by tensor."""
    worst = sorted(found.layers, key=_badness)
    shown = worst[:_MOST_ROWS]
    rows = [
        (
            layer.name,
            layer.step,
            layer.codes,
            layer.mismatches,
            decibel(layer.float_scores.sqnr_db if layer.float_scores else None),
            layer.first,
        )
        for layer in shown
    ]
    title = f"tensors, worst first ({len(shown)} of {len(worst)}; all with --json)"
    columns = ("tensor", "step", "codes", "mismatches", "SQNR", "first mismatch")
    print_table(console, title, columns, rows)
    for output in found.outputs:
        scores = output.float_scores
        text = "not compared with float" if scores is None else _scores_text(scores)
        console.print(printable(f"output {output.name}: {output.mismatches} mismatches; {text}"))
    console.print(
        f"{found.mismatches} mismatches in {found.codes} codes of {found.tensors} tensors, "
        f"{found.samples} samples"
    )
    if found.island_mismatches:
        console.print(f"{found.island_mismatches} more after float islands, where none is promised")
    if found.hidden:
        console.print(printable(f"not visible in this target: {', '.join(found.hidden)}"))


def _badness(layer: object) -> tuple[int, float]:
    mismatches = getattr(layer, "mismatches", 0)
    scores = getattr(layer, "float_scores", None)
    sqnr_db = scores.sqnr_db if scores is not None else None
    return -mismatches, float("inf") if sqnr_db is None else sqnr_db


def print_comparison(found: Comparison, console: Console) -> None:
    """Nearness of two models."""
    rows = [(name, _scores_text(scores)) for name, scores in found.outputs.items()]
    if found.first_top1 is not None:
        rows.append(
            ("top-1 accuracy", f"{percent(found.first_top1)} and {percent(found.second_top1)}")
        )
    title = f"{found.second} against {found.first}, {found.samples} samples"
    print_table(console, title, ("output", "nearness"), rows)


def print_accuracy(found: MeasuredAccuracy, console: Console) -> None:
    """Top-1 accuracy of one model."""
    text = f"{found.model}: top-1 accuracy {percent(found.top1)} of {found.samples} samples"
    console.print(printable(text))


def print_perplexity(found: Perplexity, console: Console) -> None:
    """Perplexity of one model."""
    text = (
        f"{found.model}: perplexity {found.perplexity:.4f} (cross entropy "
        f"{found.cross_entropy:.5f} nats) of {found.tokens} tokens in {found.samples} samples"
    )
    console.print(printable(text))
