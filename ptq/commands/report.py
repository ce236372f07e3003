"""`ptq report`: parses, calls, writes one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import options_as
from ptq.report.options import CALIB, FILE, FLOAT, PREPROCESS, QUIET, preprocess_of

SUFFIXES = (".html", ".md", ".json")


@dataclass(frozen=True, kw_only=True)
class _Report:
    model: Path
    output: Path | None
    calib: str | None
    samples: int
    preprocess: str | None
    float_path: Path | None
    front: Path | None
    force: bool
    quiet: bool


@click.command()
@options_as(
    _Report,
    click.argument("model", type=FILE),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="FILE.html, FILE.md or FILE.json.  [default: MODEL.html]",
    ),
    CALIB,
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True),
    PREPROCESS,
    FLOAT,
    click.option("--front", type=FILE, metavar="JSON", help="Models of a Pareto front to draw."),
    click.option("--force", is_flag=True, help="Replace the file if it exists."),
    *QUIET,
)
def report(options: _Report) -> None:
    """Write a page about a quantised MODEL: layers, histograms, graph, latency, provenance.

    With --calib every tensor is also compared with the float model's.
    """
    from ptq.files import check_output
    from ptq.pages import PageOptions, make_page, save_page
    from ptq.report.measure import Samples
    from ptq.report.progress import progress

    out = options.output or options.model.with_suffix(".html")
    if out.suffix not in SUFFIXES:
        raise click.UsageError(f"-o {out}: wanted a name that ends in {', '.join(SUFFIXES)}")
    check_output(out, force=options.force, sources=[options.model])
    samples = None
    if options.calib is not None:
        preprocess = preprocess_of(options.preprocess)
        samples = Samples(options.calib, None, preprocess, options.samples)
    with progress(quiet=options.quiet) as show:
        page = make_page(
            options.model, PageOptions(samples, options.float_path, options.front), show
        )
    save_page(page, out, force=options.force)
    if not options.quiet:
        click.echo(f"wrote {out}")
