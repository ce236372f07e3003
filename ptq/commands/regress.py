"""`ptq regress`: parses, calls, prints, and exits with 1 when a gate fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.errors import GateError
from ptq.report.commands import emit, options_as
from ptq.report.options import COMMON, EVAL, FILE, FLOAT, PREPROCESS, Common, preprocess_of

if TYPE_CHECKING:
    from ptq.regress import Regression, RegressOptions
    from ptq.report.progress import Show

_OUT = click.Path(dir_okay=False, path_type=Path)
_NOT_NEGATIVE = click.FloatRange(min=0)


@dataclass(frozen=True, kw_only=True)
class _Regress(Common):
    model: Path
    baseline: Path
    calib: str | None
    evaluation: Path | None
    preprocess: str | None
    update: bool
    float_path: Path | None
    against: Path | None
    max_accuracy_loss: float
    max_sqnr_loss: float
    max_slowdown: float
    max_growth: float
    alpha: float
    verify_samples: int
    seconds: float
    threads: int
    junit: Path | None
    sarif: Path | None
    markdown: Path | None


def _limit(name: str, default: float, text: str) -> Callable[..., Any]:
    return click.option(name, type=_NOT_NEGATIVE, default=default, show_default=True, help=text)


@click.command()
@options_as(
    _Regress,
    click.argument("model", type=FILE),
    click.option("--baseline", type=_OUT, required=True, metavar="JSON", help="What it was worth."),
    click.option("--calib", metavar="DATA", help="Samples to judge on, as of `ptq quantize`."),
    EVAL,
    PREPROCESS,
    click.option("--update", is_flag=True, help="Write the baseline from MODEL; judge nothing."),
    FLOAT,
    click.option("--against", type=FILE, help="A model to time against."),
    _limit("--max-accuracy-loss", 0.5, "Points of top-1 (or agreement with float)."),
    _limit("--max-sqnr-loss", 1.0, "Decibels of the outputs against the float model."),
    _limit("--max-slowdown", 5.0, "Per cent of latency."),
    _limit("--max-growth", 1.0, "Per cent of size."),
    _limit("--alpha", 0.025, "How often chance may fail an equivalent model, a gate."),
    click.option("--verify-samples", type=click.IntRange(min=1), default=8, show_default=True),
    click.option(
        "--duration", "seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True
    ),
    click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
    click.option("--junit", type=_OUT, metavar="FILE", help="Write JUnit XML."),
    click.option("--sarif", type=_OUT, metavar="FILE", help="Write SARIF."),
    click.option("--markdown", type=_OUT, metavar="FILE", help="Write Markdown."),
    *COMMON,
)
def regress(options: _Regress) -> None:
    """Compare MODEL with a baseline of itself: accuracy, latency, size, exactness.

    A gate fails where the loss is more than is tolerated and more than chance explains. Markdown
    also goes to $GITHUB_STEP_SUMMARY.
    """
    from ptq.regress import regress_file
    from ptq.report.print_gates import print_regression
    from ptq.report.progress import progress

    with progress(quiet=options.quiet) as show:
        if options.update:
            _update(options, show)
            return
        found = regress_file(options.model, options.baseline, _how(options), show)
    _write_files(options, found)
    head = {"command": "regress", "passed": found.passed, "other_cpu": found.other_cpu}
    emit(options, head, found, print_regression)
    failed = [gate.name for gate in found.gates if gate.status == "failed"]
    if failed:
        raise GateError(f"{options.model}: failed: {', '.join(failed)}")


def _how(options: _Regress) -> RegressOptions:
    from ptq.evaluate import Samples
    from ptq.regress import RegressOptions
    from ptq.report.gates import Limits

    if options.calib is not None and options.evaluation is not None:
        raise click.UsageError("--calib and --eval contradict each other; give one of them")
    calib, evaluation = options.calib, options.evaluation
    if isinstance(calib, str) and Path(calib).exists():
        evaluation = Path(calib)  # all of it, and its labels if it has any
        calib = None
    return RegressOptions(
        Samples(calib, evaluation, preprocess_of(options.preprocess)),
        Limits(
            options.alpha,
            options.max_accuracy_loss / 100,
            options.max_sqnr_loss,
            options.max_slowdown / 100,
            options.max_growth / 100,
        ),
        float_path=options.float_path,
        against=options.against,
        verified=options.verify_samples,
        seconds=options.seconds,
        threads=options.threads,
    )


def _update(options: _Regress, show: Show) -> None:
    from ptq.regress import make_baseline
    from ptq.report.baseline import save_baseline

    made = make_baseline(options.model, options.baseline.parent, _how(options), show)
    save_baseline(made, options.baseline)
    if not options.quiet:
        click.echo(f"wrote {options.baseline}", err=options.as_json)


def _write_files(options: _Regress, found: Regression) -> None:
    from ptq.regress import write_verdicts
    from ptq.report import gate_files

    write_verdicts(found, junit=options.junit, sarif=options.sarif, markdown=options.markdown)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        verdicts = gate_files.Verdicts(found.model, found.baseline, found.gates, found.notes)
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(gate_files.markdown(verdicts))
