"""Where a model's time goes: onnxruntime's profile node by node, a module's step by step."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptq.report.session import Batch, Source, open_session
from ptq.runtime import load

_RUNS = 20
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """Mean time of one node of the optimised graph, or of one step of a compiled module.

    op: the operator, or the step's kernels. share: of the sum over all nodes.
    """

    name: str
    op: str
    mean_us: float
    share: float


def profile(
    source: Source, batch: Batch, *, name: str, threads: int | None = None, runs: int = _RUNS
) -> tuple[NodeTime, ...]:
    """Run the model with onnxruntime's profiler on; nodes with the most time first.

    Timing every node costs time itself, so this is a run of its own, after the latency.
    """
    with tempfile.TemporaryDirectory(prefix="ptq-profile-") as folder:
        session = open_session(
            source, name=name, threads=threads, profile_prefix=str(Path(folder) / "run")
        )
        feeds = session.feeds(batch)
        for _ in range(runs + 1):
            session.run(feeds)
        events = json.loads(Path(session.handle.end_profiling()).read_bytes())
    return _node_times(events)


def profile_compiled(
    path: Path, batch: Batch, *, threads: int | None = None, runs: int = _RUNS
) -> tuple[NodeTime, ...]:
    """Run a module that `ptq compile` wrote with its own timers; steps with the most time first."""
    module = load(path, threads=threads)
    module.profile(batch)  # warms the caches
    means_us = np.mean([module.profile(batch) for _ in range(runs)], axis=0) / 1e3
    times: dict[str, float] = {}
    kernels: dict[str, list[str]] = {}
    for call, mean in zip(module.calls, means_us, strict=True):
        times[call.step] = times.get(call.step, 0.0) + float(mean)
        kernels.setdefault(call.step, []).append(call.kernel)
    return _sorted({(step, " + ".join(kernels[step])): mean for step, mean in times.items()})


def _node_times(events: list[dict[str, object]]) -> tuple[NodeTime, ...]:
    """Means over the runs but the first, which sets kernels up."""
    durations: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        title, arguments = str(event.get("name", "")), event.get("args")
        if title.endswith(_KERNEL) and isinstance(arguments, dict):
            key = title.removesuffix(_KERNEL), str(arguments.get("op_name", ""))
            durations[key].append(float(str(event["dur"])))
    means = {key: sum(times[1:]) / max(len(times) - 1, 1) for key, times in durations.items()}
    return _sorted(means)


def _sorted(means: Mapping[tuple[str, str], float]) -> tuple[NodeTime, ...]:
    """Rows from (name, op) -> microseconds, the slowest first."""
    total = sum(means.values()) or 1.0
    rows = (NodeTime(name, op, mean, mean / total) for (name, op), mean in means.items())
    return tuple(sorted(rows, key=lambda row: -row.mean_us))
