"""`ptq bench`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ptq.report.commands import emit, options_as
from ptq.report.options import (
    CALIB,
    COMMON,
    FILE,
    FLOAT,
    PREPROCESS,
    THREADS,
    Common,
    numbers,
    preprocess_of,
)


@dataclass(frozen=True, kw_only=True)
class _Bench(Common):
    models: tuple[Path, ...]
    calib: str | None
    preprocess: str | None
    float_path: Path | None
    batch: int
    warmup: int
    iterations: int | None
    seconds: float
    percentiles: tuple[float, ...]
    threads: int | None
    cpus: tuple[int, ...]
    profiled: bool


@click.command()
@options_as(
    _Bench,
    click.argument("models", type=FILE, nargs=-1, required=True),
    CALIB,
    PREPROCESS,
    FLOAT,
    click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True),
    click.option(
        "--warmup",
        type=click.IntRange(min=0),
        default=5,
        show_default=True,
        help="Untimed runs of each model first.",
    ),
    click.option("--iterations", type=click.IntRange(min=3), help="Timed runs of each model."),
    click.option(
        "--duration",
        "--seconds",
        "seconds",
        type=click.FloatRange(min=0.1),
        default=5.0,
        show_default=True,
        help="Seconds for all models together, without --iterations.",
    ),
    click.option(
        "--percentiles",
        default="50,90,95,99",
        show_default=True,
        callback=numbers(float),
        help="Of the latency, between commas.",
    ),
    THREADS,
    click.option("--cpus", default="", callback=numbers(int), help="Pin to these, such as 0,1."),
    click.option("--profile", "profiled", is_flag=True, help="Also time every node."),
    *COMMON,
)
def bench(options: _Bench) -> None:
    """Time MODELS against the first of them, or one quantised model against its float model."""
    from ptq.evaluate import Samples, bench_files
    from ptq.report.benchmark import BenchOptions
    from ptq.report.print_benchmark import print_benchmark
    from ptq.report.progress import progress

    how = BenchOptions(
        options.warmup,
        options.iterations,
        options.seconds,
        options.threads,
        options.percentiles,
        cpus=options.cpus,
    )
    samples = Samples(options.calib, preprocess=preprocess_of(options.preprocess))
    with progress(quiet=options.quiet) as show:
        found = bench_files(
            options.models,
            samples,
            how,
            baseline=options.float_path,
            batch_size=options.batch,
            profiled=options.profiled,
            progress=lambda done: show("latency", done, None),
        )
    emit(options, {"command": "bench"}, found, print_benchmark)
