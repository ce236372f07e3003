"""Top-1, agreement and SQNR at every setting, executed as integers by stock onnxruntime.

    python benchmarks/bench_accuracy.py --out accuracy.jsonl [--model NAME] [--effort default]
    python benchmarks/bench_accuracy.py --out accuracy.jsonl --table

Needs the shared data (PTQ_SHARED, default ../shared). One JSON line for each finished run; runs
that the file has already are skipped, so that it can be stopped and started again. The evaluation
data is read when a model is finished and nothing is chosen by it. Every file is verified too:
`mismatches` counts codes that differ between onnxruntime and the numpy reference.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import onnxruntime as ort

import ptq
from ptq.calib_data import input_specs, labelled, parse_preprocess
from ptq.recipe import Recipe
from ptq.report.metrics import Fidelity
from ptq.verify import VerifyOptions, verify_file

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
PRECISIONS = ("w4a8", "w4a4", "w3a3", "w2a4", "w3a8", "w8a8")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """A model, its data, how many samples it is calibrated on, and how many are verified."""

    model: str
    calib: str
    evaluation: str
    preprocess: str
    samples: int
    verified: int


CASES = {
    "resnet20": Case(
        "models/resnet20_cifar10.onnx",
        "data/cifar10_calib.npz",
        "data/cifar10_eval.npz",
        "imagenet",
        samples=256,
        verified=64,
    ),
    "efficientnet_lite0": Case(
        "models/efficientnet_lite0.onnx",
        "data/imagenet_calib",
        "data/imagenet_eval",
        "lite",
        samples=250,
        verified=8,
    ),
}


@dataclass(frozen=True)
class Setting:
    """What one run is about."""

    model: str
    precision: str
    effort: str
    seed: int


def settings(models: Sequence[str], effort: str) -> Iterator[Setting]:
    """Every setting of the first seed, model by model, then the other seeds."""
    for seed in SEEDS:
        for model in models:
            for precision in PRECISIONS:
                yield Setting(model, precision, effort, seed)


def logits(path: Path, batches: Sequence[dict[str, Any]]) -> np.ndarray:
    """First output over all batches, as a stock session computes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([run.run(None, batch)[0] for batch in batches])


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Quantise, save, run on the evaluation data, verify."""
    case = CASES[setting.model]
    recipe = Recipe.preset(setting.precision).replace(
        samples=case.samples, seed=setting.seed, effort=setting.effort
    )
    preprocess = parse_preprocess(case.preprocess)
    wall, cpu = time.monotonic(), time.process_time()
    result = ptq.quantize(SHARED / case.model, SHARED / case.calib, recipe, preprocess=preprocess)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    path = folder / "model.onnx"
    result.save(path, force=True)
    pairs = list(labelled(SHARED / case.evaluation, input_specs(result.float_model), preprocess))
    batches, labels = [batch for batch, _ in pairs], np.concatenate([y for _, y in pairs])
    wanted, found = logits(SHARED / case.model, batches), logits(path, batches)
    fidelity = Fidelity()
    fidelity.add(wanted, found)
    checked = verify_file(
        path, VerifyOptions(SHARED / case.calib, case.verified, preprocess, compare_float=False)
    )
    return {
        **asdict(setting),
        "edge_bits": recipe.edge_bits,
        "images": len(labels),
        "float_top1": float((wanted.argmax(1) == labels).mean()),
        "top1": float((found.argmax(1) == labels).mean()),
        "agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "sqnr_db": fidelity.scores().sqnr_db,
        "mismatches": checked.mismatches,
        "codes": checked.codes,
        "size_bytes": path.stat().st_size,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "ladder": [asdict(rung) for rung in result.ladder],
        "version": ptq.__version__,
    }


def finished(path: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Mean and spread over the seeds of every setting."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["model"], line["precision"], line["effort"]), []).append(line)
    print(f"{'model':20}{'':6}{'effort':9}seeds  top-1          agreement      SQNR dB     cpu s")
    for key, runs in groups.items():
        cells = [_cell([100 * run[name] for run in runs]) for name in ("top1", "agreement")]
        cells += [_cell([run["sqnr_db"] for run in runs])]
        cpu = mean(run["cpu_s"] for run in runs)
        wrong = sum(run["mismatches"] for run in runs)
        print(
            f"{key[0]:20}{key[1]:6}{key[2]:9}{len(runs):3}    "
            f"{cells[0]:15}{cells[1]:15}{cells[2]:12}{cpu:5.0f}"
            + (f"  {wrong} MISMATCHES" if wrong else "")
        )


def _cell(values: Sequence[float]) -> str:
    spread = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--model", choices=CASES, action="append")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many runs")
    parser.add_argument("--table", action="store_true", help="print what the file has")
    options = parser.parse_args()
    if options.table:
        table(finished(options.out))
        return
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    names = dict.fromkeys(Setting.__dataclass_fields__)
    left = options.most
    for setting in settings(options.model or list(CASES), options.effort):
        known = [{name: line[name] for name in names} for line in finished(options.out)]
        if asdict(setting) in known or left <= 0:
            continue
        with tempfile.TemporaryDirectory() as folder:
            line = measure(setting, Path(folder))
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({key: value for key, value in line.items() if key != "ladder"}, flush=True)
        left -= 1


if __name__ == "__main__":
    main()
