"""Latency of a TVM module against ONNX models, interleaved: ratios of the same rounds.

    python benchmarks/measure_tvm.py MODULE.so RIVAL.onnx ... [--threads N] [--batch N] [--rounds N]

Every round runs each model once, in turn; printed are the median and the quartiles of the ratios
rival / module (above 1: the module is faster), and the median milliseconds, which mean little on
a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ptq import runtime
from ptq.report.session import open_session

Run = Callable[[], Any]


def runners(module: Path, rivals: list[Path], threads: int, batch: int) -> dict[str, Run]:
    """One call of every model on the same random batch."""
    compiled = runtime.load(module, threads=threads)
    rng = np.random.default_rng(0)
    feeds = {
        port.name: rng.normal(size=(batch, *port.shape[1:])).astype(np.float32)
        for port in compiled.inputs
    }
    found: dict[str, Run] = {module.name: lambda: compiled.run(feeds)}
    for path in rivals:
        session = open_session(path, threads=threads)
        found[path.name] = lambda session=session: session.run(session.feeds(feeds))
    return found


def measure(models: dict[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of every round, [rounds] by name."""
    for run in models.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, run in models.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.asarray(values) for name, values in times.items()}


def main() -> None:
    """Parse the command line, print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("rivals", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    models = runners(options.module, options.rivals, options.threads, options.batch)
    times = measure(models, options.rounds)
    own = times[options.module.name]
    print(f"{options.threads} threads, batch {options.batch}, {options.rounds} rounds")
    for name, taken in times.items():
        low, middle, high = np.quantile(taken / own, [0.25, 0.5, 0.75])
        print(
            f"{name:28} {np.median(taken):9.3f} ms  ratio {middle:6.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
