"""`ptq compare`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import CALIB, COMMON, EVAL, FILE, PREPROCESS, SEED, Common, preprocess_of


@dataclass(frozen=True, kw_only=True)
class _Compare(Common):
    first: Path
    second: Path
    calib: str | None
    evaluation: Path | None
    samples: int
    preprocess: str | None
    seed: int | None


@click.command()
@options_as(
    _Compare,
    click.argument("first", type=FILE),
    click.argument("second", type=FILE),
    CALIB,
    EVAL,
    click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True),
    PREPROCESS,
    SEED,
    *COMMON,
)
def compare(options: _Compare) -> None:
    """Compare the outputs of SECOND with those of FIRST on the same data."""
    from ptq.evaluate import Samples, compare_files
    from ptq.report.console import print_comparison
    from ptq.report.progress import progress

    if options.calib is not None and options.evaluation is not None:
        raise click.UsageError("--calib and --eval contradict each other; give one of them")
    samples = Samples(
        options.calib,
        options.evaluation,
        preprocess_of(options.preprocess),
        options.samples,
        options.seed or 0,
    )
    with progress(quiet=options.quiet) as show:
        found = compare_files(
            options.first, options.second, samples, lambda done: show("compare", done, None)
        )
    emit(options, {"command": "compare"}, found, print_comparison)
