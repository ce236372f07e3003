"""Printing timings for people."""

from __future__ import annotations

from rich.console import Console

from ptq.report.benchmark import Benchmark
from ptq.report.console import print_table, printable
from ptq.report.cpu import Surroundings
from ptq.report.profile import NodeTime

_MOST_NODES = 20


def print_benchmark(found: Benchmark, console: Console) -> None:
    """Latency of every model, its speed-up over the first, and its slowest nodes if profiled."""
    percentiles = list(found.timings[0].percentiles)
    rows = [
        (
            timing.name,
            timing.iterations,
            f"{timing.mean_ms:.3f}",
            *(f"{timing.percentiles[p]:.3f}" for p in percentiles),
            f"{1e3 * found.batch / timing.mean_ms:.0f}",
            f"{speedup:.2f} ({low:.2f} to {high:.2f})",
        )
        for timing, speedup, (low, high) in zip(
            found.timings, found.speedups, found.speedup_intervals, strict=True
        )
    ]
    title = f"{found.runtime}, {found.threads} threads, batch {found.batch}, {found.rounds} rounds"
    speedup = f"speed-up ({100 * found.confidence:g} % interval)"
    tails = (f"p{p} ms" for p in percentiles)
    columns = ("model", "runs", "mean ms", *tails, "samples/s", speedup)
    print_table(console, title, columns, rows)
    console.print(printable(surroundings_line(found.surroundings)))
    for name, nodes in found.profiles.items():
        _print_profile(name, nodes, console)


def surroundings_line(around: Surroundings) -> str:
    """One line about the CPU, where the process may run, and how busy the machine is."""
    cpus = ", ".join(map(str, around.cpus))
    where = f"pinned to CPUs {cpus}" if around.pinned else f"CPUs {cpus}, not pinned"
    governor = f", governor {around.governor}" if around.governor else ""
    load = "" if around.load is None else f", load {around.load:g}"
    return f"{around.cpu}; {where}{governor}{load}"


def _print_profile(name: str, nodes: tuple[NodeTime, ...], console: Console) -> None:
    shown = nodes[:_MOST_NODES]
    rows = [(n.name, n.op, f"{n.mean_us:.1f}", f"{100 * n.share:.1f} %") for n in shown]
    title = f"{name}: slowest nodes ({len(shown)} of {len(nodes)}; all with --json)"
    print_table(console, title, ("node", "op", "mean us", "share"), rows)
