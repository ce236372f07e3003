"""`ptq explore`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptq.commands.budget_options import METRIC
from ptq.report.commands import emit, options_as
from ptq.report.options import (
    CALIB,
    COMMON,
    FILE,
    PREPROCESS,
    RECIPE,
    SEED,
    Choices,
    numbers,
    preprocess_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ptq.mixed.explore import Exploration


@dataclass(frozen=True, kw_only=True)
class _Explore(Choices):
    model: Path
    output: Path
    calib: str | None
    samples: int | None
    preprocess: str | None
    activation_widths: tuple[int, ...]
    points: int
    metric: str | None
    picked: str | None
    timed: bool
    jobs: int
    seed: int | None


@click.command()
@options_as(
    _Explore,
    click.argument("model", type=FILE),
    click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        required=True,
        help="A folder for the front, its picture, and the work to go on from.",
    ),
    *RECIPE,
    CALIB,
    click.option("--samples", type=click.IntRange(min=4), help="Use at most so many samples."),
    PREPROCESS,
    click.option(
        "--activation-widths",
        default="",
        callback=numbers(int),
        help="Let activations mix too, such as 4,8.  [default: as the precision says]",
    ),
    click.option("--points", type=click.IntRange(min=3), default=16, show_default=True,
                 help="How many sizes are tried; the hull of them is measured."),
    METRIC,
    click.option("--pick", "picked", metavar="knee|size=..|drop=..", help="Write that network."),
    click.option("--latency/--no-latency", "timed", default=True, help="Time every point."),
    click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Points measured at a time, each on its share of the CPUs."),
    SEED,
    *COMMON,
)  # fmt: skip
def explore(options: _Explore) -> None:
    """Measure the front of size, latency and accuracy of mixed precisions of MODEL.

    Run again in the same folder, it goes on where it stopped. What --pick writes is calibrated on
    all samples; the points are measured on a quarter that they were not calibrated on.
    """
    from ptq.mixed.explore import pick
    from ptq.mixed.front import ExploreOptions, explore_model
    from ptq.pipeline import quantize
    from ptq.precision import save_map
    from ptq.report.progress import progress

    recipe = options.recipe(samples=options.samples, seed=options.seed)
    preprocess = preprocess_of(options.preprocess)
    how = ExploreOptions(
        options.output, options.points, options.activation_widths, options.metric,
        options.timed, options.jobs,
    )  # fmt: skip
    with progress(quiet=options.quiet) as show:
        found = explore_model(
            options.model,
            options.calib,
            recipe,
            how,
            preprocess=preprocess,
            progress=lambda p: show(p.stage, p.done, p.total),
        )
        if options.picked is not None:
            said = pick(found, options.picked).precision_map
            save_map(said, options.output / "picked.map.json")
            made = quantize(
                options.model,
                options.calib,
                recipe.replace(precision_map=said),
                preprocess=preprocess,
                progress=lambda p: show(p.stage, p.done, p.total),
            )
            made.save(options.output / "picked.onnx", force=True)
    emit(options, {"command": "explore", "output": str(options.output)}, found, print_exploration)


def print_exploration(found: Exploration, console: Console) -> None:
    """A row for each point."""
    from ptq.report.console import print_table

    rows = []
    for index, point in [*enumerate(found.points), *((-1, p) for p in found.uniform)]:
        quality = point.quality
        rows.append(
            (
                point.name + (" *" if index in found.front else ""),
                f"{point.average_bits:.2f}",
                f"{point.size_bytes / 1e3:.1f} kB",
                "" if point.latency_ms is None else f"{point.latency_ms:.3f} ms",
                f"{point.predicted:.4f}",
                f"{quality.loss:.4f}",
                "" if quality.drop is None else f"{quality.drop:.2f}",
                "" if quality.sqnr_db is None else f"{quality.sqnr_db:.1f}",
            )
        )
    heads = ("", "bits", "file", "latency", "predicted KL", "measured KL", "drop", "SQNR dB")
    samples = found.points[0].quality.samples
    print_table(console, f"on {samples} held-out samples; * on the front", heads, rows)
    if found.rank_correlation is not None:
        console.print(
            f"rank correlation of predicted and measured loss over {len(found.points)} points: "
            f"{found.rank_correlation:.3f}"
        )
