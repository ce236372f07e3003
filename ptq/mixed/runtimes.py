"""What networks run on, and how long each of their layers takes there at each weight width.

onnxruntime turns stored 2- to 8-bit weights into the same int8 weights when it loads a file, so all
widths of a layer run the same kernel: there is one time a layer, and a bound on latency can only
say yes or no. Modules that TVM compiles have kernels by width.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np

from ptq.mixed.points import Workshop
from ptq.precision import Precision
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.compiled import session_of
from ptq.report.cpu import this_cpu
from ptq.report.profile import NodeTime, profile
from ptq.report.session import Session, cpu_threads, open_session
from ptq.result import Result
from ptq.runtime import Module, load
from ptq.targets.tvm.module import CompileOptions, compile_program

SECONDS = 4.0
_UNDISTURBED = 25
"""Percentile: what preemption adds to a time belongs to other processes."""


@dataclass(frozen=True)
class Latencies:
    """Of one sample.

    layers: layer -> weight bits -> milliseconds. rest_ms: of everything else. ratios: width -> its
    whole network's time by that of the widest.
    """

    runtime: str
    layers: dict[str, dict[int, float]]
    rest_ms: float
    ratios: dict[int, float]

    def predict_ms(self, widths: Mapping[str, int]) -> float:
        """Of the network whose layers have these widths."""
        return sum(self.layers[layer][bits] for layer, bits in widths.items()) + self.rest_ms


class Runtime(Protocol):
    """Something that runs networks."""

    @property
    def name(self) -> str:
        """With its version, the CPU and the threads: times are kept by it."""

    def session(self, made: Result, name: str) -> Session:
        """A network, ready to run."""

    def times(self, workshop: Workshop) -> Latencies:
        """Measure every layer at every width."""


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime on all CPUs. compared: one width of each way to store weights, widest first."""

    compared: tuple[int, ...] = (8, 4, 2)

    @property
    def name(self) -> str:
        """As `Runtime`."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}, {this_cpu()}, {cpu_threads()} threads"

    def session(self, made: Result, name: str) -> Session:
        """As `Runtime`."""
        return open_session(made.model, name=name)

    def times(self, workshop: Workshop) -> Latencies:
        """Time the widths interleaved, and part the time of the first by onnxruntime's profile."""
        layers, one = _layers(workshop), workshop.judge.one_sample()
        models = {bits: _uniform(workshop, bits) for bits in self.compared}
        sessions = {str(bits): self.session(model, str(bits)) for bits, model in models.items()}
        timed = bench(sessions, one, BenchOptions(seconds=SECONDS))
        ratios = {b: 1 / s for b, s in zip(self.compared, timed.speedups, strict=True)}
        shares = shares_of(profile(models[self.compared[0]].model, one, name="integer"), layers)
        total = timed.timings[0].p50_ms
        widths = workshop.chooser.weight_widths
        times = {layer: dict.fromkeys(widths, share * total) for layer, share in shares.items()}
        return Latencies(self.name, times, total * (1 - sum(shares.values())), ratios)


@dataclass(frozen=True)
class TvmModules:
    """Modules compiled by TVM, on one thread. target, sizes: as of `ptq compile`."""

    target: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `Runtime`."""
        sizes = "".join(f", {axis} {size}" for axis, size in sorted(self.sizes.items()))
        return f"{self.target}, {this_cpu()}, 1 thread{sizes}"

    def session(self, made: Result, name: str) -> Session:
        """As `Runtime`."""
        return session_of(self._module(made), name)

    def times(self, workshop: Workshop) -> Latencies:
        """Compile the network at each width, and time all steps of all of them, interleaved."""
        layers, one = set(_layers(workshop)), workshop.judge.one_sample()
        widths = sorted(workshop.chooser.weight_widths, reverse=True)
        modules = {bits: self._module(_uniform(workshop, bits)) for bits in widths}
        sessions = {str(bits): session_of(module, str(bits)) for bits, module in modules.items()}
        timed = bench(sessions, one, BenchOptions(seconds=SECONDS))
        steps = {
            bits: _step_times(modules[bits], ns)
            for bits, ns in _profiled(modules, sessions[str(widths[0])].feeds(one)).items()
        }
        rest = [sum(ms for step, ms in found.items() if step not in layers)
                for found in steps.values()]  # fmt: skip
        times = {layer: {bits: steps[bits][layer] for bits in widths} for layer in sorted(layers)}
        ratios = {bits: 1 / s for bits, s in zip(widths, timed.speedups, strict=True)}
        return Latencies(self.name, times, float(np.median(rest)), ratios)

    def _module(self, made: Result) -> Module:
        with tempfile.TemporaryDirectory(prefix="ptq-timed-") as folder:
            path = Path(folder) / "module.so"
            compile_program(made.program, CompileOptions(self.target, sizes=self.sizes)).export(
                path
            )
            return load(path)  # stays in memory when its file is gone


def _layers(workshop: Workshop) -> list[str]:
    return [unit.name for unit in workshop.study.context.outline.weighted]


def _uniform(workshop: Workshop, bits: int) -> Result:
    return workshop.made({layer: Precision(bits) for layer in _layers(workshop)})


def _profiled(
    modules: Mapping[int, Module], feeds: Mapping[str, np.ndarray]
) -> dict[int, np.ndarray]:
    """Undisturbed nanoseconds of every kernel call, [calls] a module, in turns."""
    times: dict[int, list[tuple[int, ...]]] = {bits: [] for bits in modules}
    started = perf_counter()
    while perf_counter() - started < SECONDS or len(times[next(iter(times))]) < 5:
        for bits, module in modules.items():
            times[bits].append(module.profile(feeds))
    return {bits: np.percentile(found, _UNDISTURBED, axis=0) for bits, found in times.items()}


def _step_times(module: Module, nanoseconds: np.ndarray) -> dict[str, float]:
    """Milliseconds of every step."""
    found: defaultdict[str, float] = defaultdict(float)
    for call, ns in zip(module.calls, nanoseconds, strict=True):
        found[call.step] += float(ns) / 1e6
    return found


def shares_of(nodes: tuple[NodeTime, ...], layers: list[str]) -> dict[str, float]:
    """Each layer's share of the time: of the nodes `<layer>/...`, which the target named so."""
    shares = dict.fromkeys(layers, 0.0)
    for node in nodes:
        owners = [layer for layer in layers if node.name.startswith(f"{layer}/")]
        if owners:
            shares[max(owners, key=len)] += node.share
    return shares
