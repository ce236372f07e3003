"""8-bit accuracy and latency beside onnxruntime's own quantiser, on the same samples, in one run.

    python benchmarks/bench_rivals.py [--rival NAME=FILE.onnx ...] [--model resnet20|efficientnet]

Needs the shared data (PTQ_SHARED, default ../shared). `--rival` adds any ONNX file that another
tool made of the same model (NNCF, Quark, ...): their environments rarely agree with ours.
Prints top-1, agreement with the float model, SQNR of the logits, and the median of the interleaved
latency ratios rival / ptq at batch 1: above 1 ptq is faster.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
import rival_ort

import ptq
from ptq.calib_data import input_specs, labelled, parse_preprocess
from ptq.model import load
from ptq.report.metrics import Fidelity

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
ROUNDS = 40


@dataclass(frozen=True)
class Case:
    """A model with its calibration and evaluation data."""

    model: str
    calib: str
    evaluation: str
    preprocess: str


CASES = {
    "resnet20": Case(
        "models/resnet20_cifar10.onnx",
        "data/cifar10_calib.npz",
        "data/cifar10_eval.npz",
        "imagenet",
    ),
    "efficientnet": Case(
        "models/efficientnet_lite0.onnx", "data/imagenet_calib", "data/imagenet_eval", "lite"
    ),
}


def session(path: Path, threads: int) -> ort.InferenceSession:
    """A stock onnxruntime session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # threads of an idle session that spin would slow the next one down
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(path: Path, batches: Sequence[dict[str, Any]]) -> np.ndarray:
    """First output over all batches."""
    run = session(path, 2)
    return np.concatenate([run.run(None, batch)[0] for batch in batches])


def latency_ratios(paths: Sequence[Path], feed: dict[str, Any], threads: int) -> list[float]:
    """Median over rounds of each model's time by the last one's, interleaved."""
    runs = [session(path, threads) for path in paths]
    seconds = np.zeros((ROUNDS, len(runs)))
    generator = np.random.default_rng(0)
    for turn in range(-3, ROUNDS):
        for column in generator.permutation(len(runs)):
            run = runs[column]
            run.run(None, feed)
            start = perf_counter()
            for _ in range(3):
                run.run(None, feed)
            if turn >= 0:
                seconds[turn, column] = perf_counter() - start
    return [float(r) for r in np.median(seconds / seconds[:, -1:], axis=0)]


def measure(name: str, case: Case, extra: dict[str, Path], folder: Path) -> None:
    """Print the table of one model."""
    model, specs = SHARED / case.model, input_specs(load(SHARED / case.model))
    preprocess = parse_preprocess(case.preprocess)
    pairs = list(labelled(SHARED / case.evaluation, specs, preprocess))
    batches, labels = [b for b, _ in pairs], np.concatenate([y for _, y in pairs])
    candidates = {"float": model}
    for entropy, title in ((False, "onnxruntime min-max"), (True, "onnxruntime entropy")):
        candidates[title] = folder / f"{name}_{entropy}.onnx"
        rival_ort.quantize(
            model, candidates[title], SHARED / case.calib, case.preprocess, 100, entropy
        )
    candidates |= extra
    candidates["ptq w8a8"] = folder / f"{name}_ptq.onnx"
    result = ptq.quantize(model, SHARED / case.calib, preprocess=preprocess)
    result.save(candidates["ptq w8a8"])
    outputs = {title: logits(path, batches) for title, path in candidates.items()}
    one = {key: value[:1] for key, value in batches[0].items()}
    ratios = {t: latency_ratios(list(candidates.values()), one, t) for t in (1, 2)}
    want = outputs["float"]
    print(f"\n{name}, {len(labels)} samples\n{'':24}top-1   agree   SQNR dB  1 thread  2 threads")
    for index, (title, got) in enumerate(outputs.items()):
        top = (got.argmax(1) == labels).mean()
        agree = (got.argmax(1) == want.argmax(1)).mean()
        fidelity = Fidelity()
        fidelity.add(want, got)
        quality = fidelity.scores().sqnr_db
        print(
            f"{title:24}{top:.4f}  {agree:.4f}  {quality or float('inf'):7.2f}"
            f"  {ratios[1][index]:8.2f}  {ratios[2][index]:9.2f}"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--model", choices=CASES)
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    extra = {n: Path(f) for n, _, f in (item.partition("=") for item in options.rival)}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            if options.model in (None, name):
                measure(name, case, extra, Path(folder))


if __name__ == "__main__":
    main()
