"""`ptq quantize --from-manifest` and `--check-reproducible`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import click

from ptq.errors import GateError
from ptq.report.options import FILE

REPRODUCE = (
    click.option(
        "--from-manifest",
        type=FILE,
        metavar="JSON",
        help="Quantise as this OUT.ptq.json says, and compare the bytes; no other choices.",
    ),
    click.option(
        "--check-reproducible",
        is_flag=True,
        help="Quantise again in a fresh process, and compare the bytes.",
    ),
)


class Redone(Protocol):
    """The options that go with --from-manifest."""

    @property
    def model(self) -> Path:
        """The float model."""

    @property
    def output(self) -> Path | None:
        """What to write."""

    @property
    def calib(self) -> str | None:
        """Where the samples are now."""

    @property
    def force(self) -> bool:
        """Replace what is there."""

    @property
    def quiet(self) -> bool:
        """Say nothing."""


_ALLOWED = {"model", "output", "calib", "force", "quiet", "from_manifest"}


def redo(options: Redone, manifest: Path) -> None:
    """Quantise as the manifest says.

    Raises:
        GateError: other bytes come out than the manifest lists.
    """
    from ptq import reproduce
    from ptq.report import artifact
    from ptq.report.progress import progress

    _refuse_others()
    if options.output is None:
        raise click.UsageError("--from-manifest wants -o: what it makes is compared, not replaced")
    artifact.check(options.output, force=options.force, sources=[options.model, manifest])
    with progress(quiet=options.quiet) as show:
        other = reproduce.redo(
            options.model,
            manifest,
            options.output,
            calib=options.calib,
            force=options.force,
            progress=lambda p: show(p.stage, p.done, p.total),
        )
    if other:
        raise GateError(f"{options.output}: not byte for byte what {manifest} lists: {other}")
    if not options.quiet:
        click.echo(f"wrote {options.output}, byte for byte what {manifest} lists")


def _refuse_others() -> None:
    """The manifest makes every choice: another one beside it is a contradiction."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    others = [
        name
        for name in context.params
        if name not in _ALLOWED and context.get_parameter_source(name) is given
    ]
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise click.UsageError(f"--from-manifest makes every choice; leave out {names}")


def check_again(model: Path, out: Path, *, quiet: bool) -> None:
    """Quantise again in a fresh process, and compare.

    Raises:
        GateError: other bytes come out.
    """
    from ptq.reproduce import check_reproducible

    check_reproducible(model, out)
    if not quiet:
        click.echo("reproducible: a second run gave the same bytes", err=True)
