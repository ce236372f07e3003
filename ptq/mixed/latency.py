"""Latency of every layer as it runs on this machine, measured in the network itself.

onnxruntime turns stored 2- to 8-bit weights into the same int8 weights when it loads a file, so all
widths of a layer run the same kernel. The table therefore has one time a layer, and a bound on
latency can only say yes or no to the network; whether the widths really time alike is measured too.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace

import msgspec

from ptq.mixed.points import Workshop
from ptq.passes.allocate_bits import Problem
from ptq.precision import Precision
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.cpu import this_cpu
from ptq.report.profile import NodeTime, profile
from ptq.report.session import cpu_threads, open_session

COMPARED = (8, 4, 2)
"""One width of each way to store weights; the first is profiled."""
SECONDS = 4.0

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class Latencies:
    """Of one sample, all CPUs.

    layers: milliseconds by layer; rest_ms: of everything else. ratios: width -> its whole network's
    time by that of the first width.
    """

    runtime: str
    layers: dict[str, float]
    rest_ms: float
    ratios: dict[int, float]

    @property
    def total_ms(self) -> float:
        """Of the whole network."""
        return sum(self.layers.values()) + self.rest_ms


def with_latencies(workshop: Workshop, problem: Problem) -> Problem:
    """The problem with the latency of every option."""
    found = layer_latencies(workshop)
    listed = ", ".join(f"{bits} bits {ratio:.3f}" for bits, ratio in found.ratios.items())
    _LOG.warning(
        "all weight widths run the same int8 kernels: %.3f ms predicted for any of them; measured "
        "relative to 8 bits: %s", found.total_ms, listed,
    )  # fmt: skip
    choices = [
        replace(
            choice,
            options=tuple(
                replace(o, costs={**o.costs, "latency_ms": found.layers.get(choice.layer, 0.0)})
                for o in choice.options
            ),
        )
        for choice in problem.choices
    ]
    fixed = {**problem.fixed, "latency_ms": found.rest_ms}
    return replace(problem, choices=tuple(choices), fixed=fixed)


def layer_latencies(workshop: Workshop) -> Latencies:
    """Measured once on each machine; kept in the work folder."""
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}, {this_cpu()}, {cpu_threads()} threads"
    machine = hashlib.blake2b(runtime.encode(), digest_size=8).hexdigest()
    path = workshop.study.cache / f"latency-{workshop.study.recipe.target}-{machine}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Latencies)
    found = _measure(workshop, runtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(found))
    return found


def _measure(workshop: Workshop, runtime: str) -> Latencies:
    """Time the widths interleaved, and part the time of the first by onnxruntime's profile."""
    layers = [unit.name for unit in workshop.study.context.outline.weighted]
    models = {
        bits: workshop.model({layer: Precision(bits) for layer in layers}) for bits in COMPARED
    }
    one = workshop.judge.one_sample()
    sessions = {str(bits): open_session(model) for bits, model in models.items()}
    timed = bench(sessions, one, BenchOptions(seconds=SECONDS))
    ratios = {bits: 1 / s for bits, s in zip(COMPARED, timed.speedups, strict=True)}
    shares = shares_of(profile(models[COMPARED[0]], one, name="integer"), layers)
    total = timed.timings[0].p50_ms
    times = {layer: share * total for layer, share in shares.items()}
    return Latencies(runtime, times, total - sum(times.values()), ratios)


def shares_of(nodes: tuple[NodeTime, ...], layers: list[str]) -> dict[str, float]:
    """Each layer's share of the time: of the nodes `<layer>/...`, which the target named so."""
    shares = dict.fromkeys(layers, 0.0)
    for node in nodes:
        owners = [layer for layer in layers if node.name.startswith(f"{layer}/")]
        if owners:
            shares[max(owners, key=len)] += node.share
    return shares
