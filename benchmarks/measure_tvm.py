"""Latency of a compiled module against its rivals, interleaved: ratios of the same rounds.

    python benchmarks/measure_tvm.py MODULE.so RIVAL.onnx ... [--openvino QDQ.onnx ...]
        [--threads 1,2] [--batch 1,16] [--seconds 20]

Rivals are run by onnxruntime, those behind --openvino by OpenVINO (pip install openvino). Every
round runs each model in turn, the order turning from round to round: a pause in which the threads
of the one before go to sleep, one run that is not timed, then the least of three that are. Printed
are the median and the quartiles of the ratios rival / module (above 1: the module is faster);
milliseconds mean little on a busy machine. Needs numpy, onnxruntime and ptq on the path only.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ptq import runtime

Run = Callable[[], Any]
Array = np.ndarray
PAUSE_SECONDS = 0.003
REPEATS = 3


def with_module(path: Path, threads: int, feeds: dict[str, Array]) -> Run:
    """The compiled module."""
    module = runtime.load(path, threads=threads)
    return lambda: module.run(feeds)


def with_onnxruntime(path: Path, threads: int, feeds: dict[str, Array]) -> Run:
    """A session with everything on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    named = dict(zip([i.name for i in session.get_inputs()], feeds.values(), strict=True))
    return lambda: session.run(None, named)


def with_openvino(path: Path, threads: int, feeds: dict[str, Array]) -> Run:
    """One stream, shapes fixed to those of the feeds, tuned for latency."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({i: x.shape for i, x in enumerate(feeds.values())})
    how = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", how).create_infer_request()
    inputs = list(feeds.values())
    return lambda: request.infer(inputs)


def invented(module: Path, batch: int) -> dict[str, Array]:
    """A random batch for the module's inputs."""
    rng = np.random.default_rng(0)
    ports = runtime.load(module).inputs
    return {p.name: rng.normal(size=(batch, *p.shape[1:])).astype(np.float32) for p in ports}


def measure(models: dict[str, Run], seconds: float) -> dict[str, Array]:
    """Milliseconds of every round, [rounds] by name."""
    times: dict[str, list[float]] = {name: [] for name in models}
    names, end = list(models), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 5:
        for name in names:
            time.sleep(PAUSE_SECONDS)
            models[name]()
            taken = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                models[name]()
                taken.append(1e3 * (time.perf_counter() - start))
            times[name].append(min(taken))
        names = names[1:] + names[:1]
    return {name: np.asarray(values) for name, values in times.items()}


def report(options: argparse.Namespace, threads: int, batch: int) -> None:
    """Measure one setting; print a line a model."""
    feeds = invented(options.module, batch)
    models = {options.module.name: with_module(options.module, threads, feeds)}
    for opener, paths in ((with_onnxruntime, options.rivals), (with_openvino, options.openvino)):
        for path in paths:
            title = f"{path.name} in {opener.__name__.removeprefix('with_')}"
            models[title] = opener(path, threads, feeds)
    times = measure(models, options.seconds)
    own = times[options.module.name]
    load = os.getloadavg()[0]
    print(f"{threads} threads, batch {batch}, {len(own)} rounds, load {load:.1f}")
    for name, taken in times.items():
        low, middle, high = np.quantile(taken / own, [0.25, 0.5, 0.75])
        spread = f"({low:.3f} to {high:.3f})"
        print(f"  {name:36} {np.median(taken):9.3f} ms  ratio {middle:6.3f} {spread}", flush=True)


def numbers(text: str) -> list[int]:
    """'1,2' -> [1, 2]."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Parse the command line; every setting in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("rivals", type=Path, nargs="*")
    parser.add_argument("--openvino", type=Path, nargs="+", default=[])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--batch", type=numbers, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    for threads in options.threads:
        for batch in options.batch:
            report(options, threads, batch)


if __name__ == "__main__":
    main()
