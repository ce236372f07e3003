"""Latency of models against each other in one run: interleaved, so that a busy machine is fair.

Each round times a burst of every model, in an order that turns from round to round; the ratio is
the median over the rounds of the ratios of the bursts' medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ptq.errors import RecipeError
from ptq.report.session import Batch, Session, cpu_threads

SCHEMA_VERSION = 1
_BURST_SECONDS = 0.1
_FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class BenchOptions:
    """How long to measure.

    warmup: untimed runs of each model first. iterations: timed runs of each model, or None for as
    many as `seconds` allow (of all models together). threads: None is all CPUs.
    """

    warmup: int = 5
    iterations: int | None = None
    seconds: float = 5.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < _FEWEST_ROUNDS:
            raise RecipeError(
                f"bench: got {self.iterations} iterations; wanted at least {_FEWEST_ROUNDS}"
            )
        if not 0 < self.seconds < float("inf"):
            raise RecipeError(f"bench: got {self.seconds} seconds; wanted a positive number")


@dataclass(frozen=True)
class Timing:
    """Latency of one model in milliseconds."""

    name: str
    iterations: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Benchmark:
    """Timings in the order of the models; the first one is the baseline.

    speedups: baseline / model, the median over rounds, one a model (the first is 1).
    speedup_ranges: quartiles of the same over the rounds.
    """

    runtime: str
    threads: int
    batch: int
    rounds: int
    timings: tuple[Timing, ...]
    speedups: tuple[float, ...]
    speedup_ranges: tuple[tuple[float, float], ...]
    schema_version: int = SCHEMA_VERSION


def bench(
    sessions: Mapping[str, Session],
    batch: Batch,
    options: BenchOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Time the models on one batch of float inputs (quantised beforehand where they want codes).

    progress: called with the rounds done.
    """
    import onnxruntime

    options = options or BenchOptions()
    feeds = {name: session.feeds(batch) for name, session in sessions.items()}
    runs = {name: _runner(sessions[name], feeds[name]) for name in sessions}
    bursts = {name: _burst(run, options) for name, run in runs.items()}
    rounds: list[dict[str, list[float]]] = []
    started = time.perf_counter()
    while not _enough(rounds, options, time.perf_counter() - started):
        order = list(runs)
        turn = len(rounds) % len(order)
        times = {name: _timed(runs[name], bursts[name]) for name in order[turn:] + order[:turn]}
        rounds.append(times)
        if progress is not None:
            progress(len(rounds))
    return Benchmark(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        threads=options.threads or cpu_threads(),
        batch=max((len(x) for x in batch.values() if x.ndim), default=1),
        rounds=len(rounds),
        timings=tuple(_timing(name, rounds, options) for name in runs),
        speedups=tuple(_quantile(_ratios(rounds, name), 50) for name in runs),
        speedup_ranges=tuple(
            (_quantile(_ratios(rounds, name), 25), _quantile(_ratios(rounds, name), 75))
            for name in runs
        ),
    )


def _runner(session: Session, feeds: Batch) -> Callable[[], object]:
    handle, ready = session.handle, dict(feeds)
    session.run(ready)  # says clearly what is wrong with the samples, if anything is
    return lambda: handle.run(None, ready)


def _burst(run: Callable[[], object], options: BenchOptions) -> int:
    """Warm up, and choose how many runs make a burst of about 0.1 s."""
    for _ in range(options.warmup):
        run()
    started = time.perf_counter()
    run()
    count = int(_BURST_SECONDS / max(time.perf_counter() - started, 1e-6))
    limit = 50 if options.iterations is None else max(options.iterations // _FEWEST_ROUNDS, 1)
    return max(1, min(count, limit))


def _enough(rounds: list[dict[str, list[float]]], options: BenchOptions, elapsed: float) -> bool:
    if len(rounds) < _FEWEST_ROUNDS:
        return False
    if options.iterations is None:
        return elapsed >= options.seconds
    done = [sum(len(times[name]) for times in rounds) for name in rounds[0]]
    return min(done) >= options.iterations


def _timed(run: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of `count` runs, after one untimed run that warms the caches again."""
    if count > 1:
        run()
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def _timing(name: str, rounds: list[dict[str, list[float]]], options: BenchOptions) -> Timing:
    times = [ms for one in rounds for ms in one[name]][: options.iterations]
    p50, p90, p99 = (_quantile(times, q) for q in (50, 90, 99))
    return Timing(name, len(times), p50, p90, p99)


def _ratios(rounds: list[dict[str, list[float]]], name: str) -> list[float]:
    baseline = next(iter(rounds[0]))  # round 0 runs in the given order
    return [float(np.median(one[baseline]) / np.median(one[name])) for one in rounds]


def _quantile(values: list[float], percent: int) -> float:
    return float(np.percentile(values, percent))
