"""How often the gates of `ptq regress` are right, on ResNet-20 at W4A8 in closed forms.

    python benchmarks/bench_gates.py accuracy|latency [--runs 20] [--folder out/gates] [--most N]
        [--only CASE]

Needs the shared data (PTQ_SHARED, default ../shared). The baseline is seed 0. Accuracy, on the
first 5,000 evaluation images: another seed, which draws other samples, must pass; the baseline's
network with weight codes moved by one step, until it is LOST worse, must fail. Latency: the same
file (A/A) must pass; the same network with idle work added, SLOWER, must fail. Prints which gates
failed how often. A folder that is there already is gone on with; `--most` stops after so many runs:
a busy machine is used bit by bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import ptq
from ptq.calib_data import parse_preprocess
from ptq.evaluate import Samples, bench_files, float_inputs
from ptq.regress import RegressOptions, make_baseline, regress_file
from ptq.report.artifact import SidePaths
from ptq.report.baseline import save_baseline
from ptq.report.benchmark import BenchOptions
from ptq.report.outcomes import observe
from ptq.report.session import open_session

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = SHARED / "models/resnet20_cifar10.onnx"
PREPROCESS = parse_preprocess("imagenet")
RECIPE = ptq.Recipe.from_bits(4).replace(samples=64, effort="fast")
SLOWER = 1.15
LOST = 0.015  # of all answers that were right
MEASURED = {"accuracy": (5000, 0.5), "latency": (64, 5.0)}  # images, seconds of latency


def quantized(path: Path, recipe: ptq.Recipe) -> Path:
    """The quantised model at `path`, made if it is not there."""
    if not path.is_file():
        calib = SHARED / "data/cifar10_calib.npz"
        ptq.quantize(MODEL, calib, recipe, preprocess=PREPROCESS).save(path)
    return path


def slowed(path: Path, base: Path) -> Path:
    """`base` with MaxPools of one element, which change nothing, until it is SLOWER."""
    if path.is_file():
        return path
    _copy_side_files(base, path)
    low, high = 0, 256
    while high - low > 1:  # more of them is slower
        count = (low + high) // 2
        with_idle_work(base, path, count)
        options = BenchOptions(seconds=4.0, threads=1)
        ratio = 1 / bench_files([base, path], Samples(), options).speedups[1]
        print(f"{count} idle nodes: {ratio:.3f} x the time", flush=True)
        if abs(ratio - SLOWER) < 0.01:
            break
        low, high = (count, high) if ratio < SLOWER else (low, count)
    return path


def degraded(path: Path, base: Path, images: Path, seed: int) -> Path:
    """`base` with random weight codes moved by one step, as many as cost LOST of the answers."""
    if path.is_file():
        return path
    _copy_side_files(base, path)
    samples = list(Samples(evaluation=images, preprocess=PREPROCESS).batches(float_inputs(base)))
    before = observe(open_session(base), None, samples).accuracy or 0
    low, high = 0.0, 0.5
    while True:
        part = (low + high) / 2
        with_moved_codes(base, path, part, seed)
        loss = before - (observe(open_session(path), None, samples).accuracy or 0)
        print(f"{100 * part:.2f} % of the codes moved: {100 * loss:.2f} points lost", flush=True)
        if abs(loss - LOST) < 0.0005:
            return path
        low, high = (part, high) if loss < LOST else (low, part)


def with_moved_codes(source: Path, path: Path, part: float, seed: int) -> None:
    """Write `source` with this part of its 4-bit weight codes moved up or down by one."""
    model, rng = onnx.load(source), np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.UINT4:
            continue
        codes = numpy_helper.to_array(tensor)
        chosen, step = rng.random(codes.shape) < part, rng.choice((-1, 1), codes.shape)
        moved = np.clip(codes.astype(int) + chosen * step, 0, 15).astype(codes.dtype)
        tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, path)


def _copy_side_files(base: Path, path: Path) -> None:
    for suffix in ("manifest", "program"):
        shutil.copy(getattr(SidePaths(base), suffix), getattr(SidePaths(path), suffix))


def with_idle_work(source: Path, path: Path, count: int) -> None:
    """Write `source` with `count` MaxPools between its first convolution and whoever reads it."""
    model = onnx.load(source)
    nodes = model.graph.node
    where = next(i for i, node in enumerate(nodes) if node.op_type == "QLinearConv")
    made = nodes[where].output[0]
    chain = [f"{made}.idle{i}" for i in range(count)]
    for node in nodes[where + 1 :]:
        node.input[:] = [chain[-1] if name == made and chain else name for name in node.input]
    for i, (before, after) in enumerate(zip([made, *chain], chain, strict=False)):
        nodes.insert(
            where + 1 + i, helper.make_node("MaxPool", [before], [after], kernel_shape=[1, 1])
        )
    onnx.save(model, path)


def cases(kind: str, folder: Path, base: Path, images: Path) -> dict[str, Callable[[int], Path]]:
    """What is judged: run number -> model."""
    if kind == "latency":
        return {"A/A": lambda run: base, "slowed": lambda run: slowed(folder / "slowed.onnx", base)}
    return {
        "another seed": lambda run: quantized(folder / f"seed{run}.onnx", RECIPE.replace(seed=run)),
        "degraded": lambda run: degraded(folder / f"degraded{run}.onnx", base, images, run),
    }


def main() -> None:
    """Run what has not been run yet, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(MEASURED))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("out/gates"))
    parser.add_argument("--most", type=int, default=10**6)
    parser.add_argument("--only", help="one case, such as 'degraded'")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    count, seconds = MEASURED[arguments.kind]
    images = first_images(folder / f"eval{count}.npz", count)
    options = RegressOptions(Samples(evaluation=images, preprocess=PREPROCESS), seconds=seconds)
    baseline, log = folder / f"{arguments.kind}.json", folder / f"{arguments.kind}.jsonl"
    base = quantized(folder / "seed0.onnx", RECIPE)
    if not baseline.is_file():
        save_baseline(make_baseline(base, folder, options), baseline)
    models = cases(arguments.kind, folder, base, images)
    wanted = itertools.product(range(1, arguments.runs + 1), models)
    missing = [
        (case, run)
        for run, case in wanted
        if (case, run) not in done(log) and arguments.only in (None, case)
    ]
    for case, run in missing[: arguments.most]:
        found = regress_file(models[case](run), baseline, options)
        gates = {gate.name: [gate.status, gate.message] for gate in found.gates}
        with log.open("a") as file:
            file.write(json.dumps({"case": case, "run": run, "gates": gates}) + "\n")
    report(log)


def first_images(path: Path, count: int) -> Path:
    """The first images of the evaluation data, with their labels."""
    if not path.is_file():
        with np.load(SHARED / "data/cifar10_eval.npz") as data:
            np.savez(path, **{name: data[name][:count] for name in data.files})
    return path


def done(log: Path) -> dict[tuple[str, int], dict[str, list[str]]]:
    """The gates of every run in the log."""
    lines = log.read_text().splitlines() if log.is_file() else []
    records = [json.loads(line) for line in lines]
    return {(r["case"], r["run"]): r["gates"] for r in records}


def report(log: Path) -> None:
    """One line a case: how often which gate failed."""
    runs: Counter[str] = Counter()
    failures: dict[str, Counter[str]] = {}
    for (case, _), gates in done(log).items():
        runs[case] += 1
        failed = [name for name, (status, _) in gates.items() if status == "failed"]
        failures.setdefault(case, Counter()).update(failed or ["none"])
    for case, count in runs.items():
        found = ", ".join(f"{gate} {n}" for gate, n in failures[case].most_common())
        print(f"{case}: {count} runs; failed: {found}", flush=True)


if __name__ == "__main__":
    main()
