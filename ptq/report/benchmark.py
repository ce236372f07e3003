"""Latency of models against each other in one run: interleaved, so that a busy machine is fair.

Each round times a short burst of every model, in an order that turns from round to round; a burst
counts as its lower quartile (what preemption adds belongs to other processes), and the ratio is the
median over the rounds of the bursts' ratios, with its confidence interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ptq.errors import RecipeError
from ptq.report.cpu import Surroundings, surroundings
from ptq.report.profile import NodeTime
from ptq.report.session import Batch, Session, cpu_threads
from ptq.report.significance import Floats, median_interval

SCHEMA_VERSION = 2
PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_BURST_SECONDS = 0.03
_FEWEST_ROUNDS = 3
_FEWEST_RUNS = 3
_QUANTILES = 41


@dataclass(frozen=True)
class BenchOptions:
    """How long to measure, and what to say of it.

    warmup: untimed runs of each model first. iterations: timed runs of each model, or None for as
    many as `seconds` allow (of all models together). threads: None is all CPUs.
    confidence: of the interval of a speed-up. cpus: pin to these; none is anywhere.
    """

    warmup: int = 5
    iterations: int | None = None
    seconds: float = 5.0
    threads: int | None = None
    percentiles: tuple[float, ...] = PERCENTILES
    confidence: float = 0.95
    cpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < _FEWEST_ROUNDS:
            raise RecipeError(
                f"bench: got {self.iterations} iterations; wanted at least {_FEWEST_ROUNDS}"
            )
        if not 0 < self.seconds < float("inf"):
            raise RecipeError(f"bench: got {self.seconds} seconds; wanted a positive number")
        wrong = [p for p in self.percentiles if not 0 <= p <= 100]
        if wrong:
            raise RecipeError(f"bench: got percentile {wrong[0]}; wanted 0 to 100")


@dataclass(frozen=True)
class Timing:
    """Latency of one model in milliseconds.

    percentiles: "99" -> latency that 99 % of the runs stay below; always with "50".
    quantiles_ms: the whole distribution, minimum to maximum in steps of 2.5 %.
    """

    name: str
    iterations: int
    mean_ms: float
    percentiles: dict[str, float]
    quantiles_ms: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        """The median."""
        return self.percentiles["50"]


@dataclass(frozen=True)
class Benchmark:
    """Timings in the order of the models; the first one is the baseline.

    speedups: baseline / model, the median over rounds, one a model (the first is 1).
    speedup_intervals: of these medians, at `confidence`; all of the range below 6 rounds.
    profiles: model name -> its nodes, if asked for.
    """

    runtime: str
    threads: int
    batch: int
    rounds: int
    confidence: float
    surroundings: Surroundings
    timings: tuple[Timing, ...]
    speedups: tuple[float, ...]
    speedup_intervals: tuple[tuple[float, float], ...]
    profiles: dict[str, tuple[NodeTime, ...]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def bench(
    sessions: Mapping[str, Session],
    batch: Batch,
    options: BenchOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Time the models on one batch of float inputs (quantised beforehand where they want codes).

    progress: called with the rounds done; an exception raised in it cancels the run.
    """
    import onnxruntime

    options = options or BenchOptions()
    around = surroundings()
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
    ratios = {name: _ratios(rounds, name) for name in runs}
    return Benchmark(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        threads=options.threads or cpu_threads(),
        batch=max((len(x) for x in batch.values() if x.ndim), default=1),
        rounds=len(rounds),
        confidence=options.confidence,
        surroundings=around,
        timings=tuple(_timing(name, rounds, options) for name in runs),
        speedups=tuple(float(np.median(ratios[name])) for name in runs),
        speedup_intervals=tuple(median_interval(r, options.confidence) for r in ratios.values()),
    )


def _runner(session: Session, feeds: Batch) -> Callable[[], object]:
    handle, ready = session.handle, dict(feeds)
    session.run(ready)  # says clearly what is wrong with the samples, if anything is
    return lambda: handle.run(None, ready)


def _burst(run: Callable[[], object], options: BenchOptions) -> int:
    """Warm up, and choose how many runs make a burst."""
    for _ in range(options.warmup):
        run()
    alone_ms = min(_timed(run, _FEWEST_RUNS))  # any one of them may have been preempted
    count = max(int(_BURST_SECONDS * 1e3 / max(alone_ms, 1e-3)), _FEWEST_RUNS)
    limit = 50 if options.iterations is None else max(options.iterations // _FEWEST_ROUNDS, 1)
    return min(count, limit)


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
    wanted = sorted({50.0, *options.percentiles})
    return Timing(
        name,
        len(times),
        float(np.mean(times)),
        {f"{p:g}": float(np.percentile(times, p)) for p in wanted},
        tuple(float(q) for q in np.percentile(times, np.linspace(0, 100, _QUANTILES))),
    )


def _ratios(rounds: list[dict[str, list[float]]], name: str) -> Floats:
    """Baseline / model of every round, [rounds]."""
    baseline = next(iter(rounds[0]))  # round 0 runs in the given order
    return np.asarray([_undisturbed(one[baseline]) / _undisturbed(one[name]) for one in rounds])


def _undisturbed(burst: list[float]) -> float:
    return float(np.percentile(burst, 25))
