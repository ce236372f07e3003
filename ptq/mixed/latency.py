"""Bounds on latency: what the layers' times predict, and what the network then really takes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from ptq.mixed.points import Precisions, Workshop
from ptq.mixed.runtimes import SECONDS, Latencies, OnnxRuntime, Runtime, TvmModules
from ptq.passes.allocate_bits import Choice, Option, Problem
from ptq.precision import Precision
from ptq.report.benchmark import BenchOptions, bench

_LOG = logging.getLogger("ptq")


@dataclass(frozen=True)
class Confirmation:
    """A network's latency, in milliseconds, predicted and measured in one run.

    predicted: by the table, at the speed that the machine had in this run.
    """

    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted_ms / self.measured_ms - 1


def runtime_of(target: str | None, sizes: Mapping[str, int]) -> Runtime:
    """What runs a network: onnxruntime, or a module compiled for `target`, with axes of `sizes`."""
    return OnnxRuntime() if target is None else TvmModules(target, sizes)


def with_latencies(workshop: Workshop, problem: Problem, runtime: Runtime) -> Problem:
    """The problem with the latency of every option."""
    found = layer_latencies(workshop, runtime)
    listed = ", ".join(f"{bits} bits {ratio:.3f}" for bits, ratio in found.ratios.items())
    _LOG.warning("latency by weight width, relative to the widest: %s", listed)
    choices = [
        replace(choice, options=tuple(_timed(found, choice, o) for o in choice.options))
        for choice in problem.choices
    ]
    fixed = {**problem.fixed, "latency_ms": found.rest_ms}
    return replace(problem, choices=tuple(choices), fixed=fixed)


def _timed(found: Latencies, choice: Choice, option: Option) -> Option:
    latency_ms = found.layers[choice.layer][option.precision.weight_bits or 8]
    return replace(option, costs={**option.costs, "latency_ms": latency_ms})


def layer_latencies(workshop: Workshop, runtime: Runtime) -> Latencies:
    """Measured once on each machine; kept in the work folder."""
    recipe = workshop.study.recipe
    named = f"{runtime.name} {recipe.target} a{recipe.activation_bits}"
    digest = hashlib.blake2b(named.encode(), digest_size=8).hexdigest()
    path = workshop.study.cache / f"latency-{digest}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Latencies)
    found = runtime.times(workshop)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(found))
    return found


def confirm(workshop: Workshop, precisions: Precisions, runtime: Runtime) -> Confirmation:
    """Time a network beside the widest one; the table says what their ratio should be."""
    found = layer_latencies(workshop, runtime)
    widest = max(found.ratios)
    wide = {layer: Precision(widest) for layer in precisions}
    sessions = {
        name: runtime.session(workshop.made(said), name)
        for name, said in (("widest", wide), ("chosen", precisions))
    }
    timed = bench(sessions, workshop.judge.one_sample(), BenchOptions(seconds=SECONDS))
    expected = [
        found.predict_ms({layer: p.weight_bits or 8 for layer, p in said.items()})
        for said in (wide, precisions)
    ]
    reference = timed.timings[0].p50_ms
    return Confirmation(reference * expected[1] / expected[0], reference / timed.speedups[1])
