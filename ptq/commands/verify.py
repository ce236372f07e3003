"""`ptq verify`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.errors import GateError
from ptq.report.commands import emit, options_as
from ptq.report.options import (
    CALIB,
    COMMON,
    FILE,
    FLOAT,
    PREPROCESS,
    SEED,
    TARGETS,
    THREADS,
    Common,
    preprocess_of,
)


@dataclass(frozen=True, kw_only=True)
class _Verify(Common):
    model: Path
    calib: str | None
    samples: int
    preprocess: str | None
    float_path: Path | None
    with_float: bool
    target: str | None
    threads: int | None
    seed: int | None


@click.command()
@options_as(
    _Verify,
    click.argument("model", type=FILE),
    CALIB,
    click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True),
    PREPROCESS,
    FLOAT,
    click.option("--with-float/--no-float", default=True, help="Compare with the float model too."),
    click.option("--target", type=click.Choice(TARGETS), help="Print and verify this one instead."),
    THREADS,
    SEED,
    *COMMON,
)
def verify(options: _Verify) -> None:
    """Compare a quantised MODEL with the reference, code by code, and with the float model."""
    from ptq.report.console import print_verification
    from ptq.report.progress import progress
    from ptq.verify import VerifyOptions, verify_file

    how = VerifyOptions(
        calib=options.calib,
        samples=options.samples,
        preprocess=preprocess_of(options.preprocess),
        float_path=options.float_path,
        compare_float=options.with_float,
        target=options.target,
        threads=options.threads,
        seed=options.seed or 0,
    )
    with progress(quiet=options.quiet) as show:
        found = verify_file(options.model, how, lambda done, total: show("verify", done, total))
    emit(options, {"command": "verify", "passed": found.passed}, found, print_verification)
    if not found.passed:
        raise GateError(f"{options.model}: {found.mismatches} codes differ from the reference")
