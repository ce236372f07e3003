"""`ptq debug`: parses, calls, prints, writes the map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import CALIB, COMMON, EVAL, FILE, FLOAT, PREPROCESS, Common, preprocess_of


@dataclass(frozen=True, kw_only=True)
class _Debug(Common):
    model: Path
    output: Path | None
    calib: str | None
    evaluation: Path | None
    samples: int
    preprocess: str | None
    float_path: Path | None
    regain: float
    apply: bool
    force: bool


@click.command()
@options_as(
    _Debug,
    click.argument("model", type=FILE),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="The precision map that repairs.  [default: MODEL.repair.toml]",
    ),
    CALIB,
    EVAL,
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="To diagnose on; the repair is quantised with as many as MODEL was.",
    ),
    PREPROCESS,
    FLOAT,
    click.option(
        "--regain",
        type=click.FloatRange(0, 100, min_open=True, max_open=True),
        default=75.0,
        show_default=True,
        help="Per cent of the loss that the repair should take back.",
    ),
    click.option("--apply/--no-apply", default=True, help="Quantise with the repair, measure it."),
    click.option("--force", is_flag=True, help="Replace the map if it exists."),
    *COMMON,
)
def debug(options: _Debug) -> None:
    """Say which layers of a quantised MODEL lose accuracy, why, and what brings it back."""
    from ptq.debug import DebugOptions, debug_file
    from ptq.debug.print_diagnosis import print_diagnosis
    from ptq.files import check_output, staged
    from ptq.precision import save_map
    from ptq.report.measure import Samples
    from ptq.report.progress import progress

    out = options.output or options.model.with_suffix(".repair.toml")
    check_output(out, force=options.force, sources=[options.model])
    samples = Samples(
        options.calib, options.evaluation, preprocess_of(options.preprocess), options.samples
    )
    how = DebugOptions(samples, options.float_path, options.regain / 100, options.apply)
    with progress(quiet=options.quiet) as show:
        found = debug_file(options.model, how, show)
    emit(options, {"command": "debug"}, found, print_diagnosis)
    if found.precision_map:
        with staged(out.parent, force=options.force) as stage:
            save_map(found.precision_map, stage / out.name)
        if not (options.quiet or options.as_json):
            click.echo(f"wrote {out}; use it with ptq quantize --precision-map {out}")
