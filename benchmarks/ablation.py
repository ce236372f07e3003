"""What learned rounding owes to each of its choices: makes docs/ablation.md.

    python benchmarks/ablation.py --out ablation.jsonl            # runs what the file lacks
    python benchmarks/ablation.py --out ablation.jsonl --write    # docs/ablation.md from the file

ResNet-20 on the shared data (PTQ_SHARED, default ../shared). The base is `--effort default` with
fewer samples and iterations; every other row changes one thing. Judged on calibration samples that
were neither learned on nor held out, never on the evaluation data. One JSON line for each finished
run, seed by seed; it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx_ir import to_proto

from ptq.calib_data import input_specs, open_calibration, parse_preprocess
from ptq.calib_data.synthetic import synthetic_source
from ptq.distances import distances
from ptq.integer.lower import lower
from ptq.model import load
from ptq.opening import begin
from ptq.passes.context import Context
from ptq.passes.learn_rounding import LearnRounding
from ptq.pipeline import FITTED, LEARNS
from ptq.plan import Plan
from ptq.recipe import Recipe
from ptq.targets import TARGETS

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
PAGE = Path(__file__).parents[1] / "docs" / "ablation.md"
MODEL = "models/resnet20_cifar10.onnx"
CALIB = "data/cifar10_calib.npz"
PREPROCESS = "imagenet"
PRECISIONS = ("w3a4",)
SEEDS = (0, 1, 2)
SAMPLES, JUDGED = 128, 512
BASE = LearnRounding(LEARNS, iterations=100)


@dataclass(frozen=True)
class Variant:
    """A row: how it learns (None: not at all), and what it is calibrated on."""

    learning: LearnRounding | None = BASE
    samples: int = SAMPLES
    source: str = "real"


def changed(**changes: Any) -> Variant:
    """The base with another way of learning."""
    return Variant(replace(BASE, **changes))


VARIANTS: Mapping[str, Mapping[str, Variant]] = {
    "Base": {
        "closed forms only": Variant(None),
        "base": Variant(),
    },
    "Loss": {
        "Fisher diagonal": changed(loss="fisher"),
        "KL of the outputs": changed(loss="kl"),
    },
    "Degrees of freedom": {
        "rounding up or down": changed(variable="adaround", lr=0.1, learns=("codes",)),
        "whole code space": changed(learns=("codes",)),
        "bias": changed(learns=("bias",)),
        "weight scales": changed(learns=("scales",)),
        "activation steps": changed(learns=("steps",)),
        "code space, bias": changed(learns=("codes", "bias")),
        "code space, bias, scales": changed(learns=("codes", "bias", "scales")),
        "code space, bias, steps": changed(learns=("codes", "bias", "steps")),
    },
    "Variable": {
        "AdaRound's V": changed(variable="adaround", lr=0.1),
        "FlexRound": changed(variable="flexround", lr=3e-3),
    },
    "Optimizer": {
        "RAdam": changed(optimizer="radam"),
        "AdamP": changed(optimizer="adamp"),
        "SignSGD": changed(optimizer="signsgd", lr=5e-3, bias_lr=2e-3),
    },
    "Activations while learning": {
        "half unrounded (QDrop)": changed(drop=0.5),
        "all unrounded": changed(drop=1.0),
    },
    "Iterations": {
        "50": changed(iterations=50),
        "300": changed(iterations=300),
    },
    "Samples": {
        "16": Variant(samples=16),
        "64": Variant(samples=64),
        "512": Variant(samples=512),
    },
    "Calibration set": {
        "out of domain (ImageNet crops, 32 x 32)": Variant(source="imagenet"),
        "synthetic": Variant(source="synthetic"),
    },
}


def runs() -> Iterator[tuple[str, str, str, int]]:
    """(precision, group, row, seed), all rows of a seed before the next."""
    for seed in SEEDS:
        for precision in PRECISIONS:
            for group, rows in VARIANTS.items():
                for row in rows:
                    yield precision, group, row, seed


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibration images to choose from, and those that judge: disjoint, drawn by the seed."""
    specs = input_specs(load(SHARED / MODEL))
    data = open_calibration(SHARED / CALIB, specs, preprocess=parse_preprocess(PREPROCESS))
    every = np.concatenate([next(iter(batch.values())) for batch in data.batches(64)])
    order = np.random.default_rng(seed).permutation(len(every))
    return every[order[JUDGED:]], every[order[:JUDGED]]


def calibration(variant: Variant, real: np.ndarray, seed: int) -> np.ndarray:
    """The samples of a variant, [n, 3, 32, 32]."""
    specs = input_specs(load(SHARED / MODEL))
    if variant.source == "synthetic":
        source = synthetic_source(specs, variant.samples, seed)
        return np.concatenate([np.asarray(next(iter(x.values()))) for x in source.read()])
    if variant.source == "imagenet":
        return crops(variant.samples, seed)
    return real[: variant.samples]


def crops(count: int, seed: int) -> np.ndarray:
    """ImageNet pictures shrunk to 32 x 32, preprocessed like CIFAR's."""
    from PIL import Image

    paths = sorted((SHARED / "data/imagenet_calib").glob("*.jpg"))
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    pictures = [np.asarray(Image.open(paths[i]).convert("RGB").resize((32, 32))) for i in chosen]
    scaled = np.stack(pictures).astype(np.float32) / 255
    normal = (scaled - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32)


def fitted(context: Context, cache: Path) -> Plan:
    """The plan that closed forms make, from the cache if it is there."""
    if cache.exists():
        return Plan.load(cache)
    plan = Plan()
    for step in FITTED:
        plan = step.stage(context, plan)
    cache.parent.mkdir(parents=True, exist_ok=True)
    plan.save(cache)
    return plan


def measure(precision: str, group: str, row: str, seed: int, cache: Path) -> dict[str, Any]:
    """Learn a variant and judge the integer network."""
    variant = VARIANTS[group][row]
    real, judged = images(seed)
    name = input_specs(load(SHARED / MODEL))[0].name
    recipe = Recipe.preset(precision).replace(samples=variant.samples, seed=seed)
    samples = {name: calibration(variant, real, seed)}
    context = begin(load(SHARED / MODEL), samples, recipe).context
    key = f"{precision}-{variant.source}-{variant.samples}-{seed}.plan"
    plan = fitted(context, cache / key)
    start = time.process_time()
    learned = plan if variant.learning is None else variant.learning(context, plan)
    cpu_s = time.process_time() - start
    target = TARGETS["onnx"](lower(context.model, context.outline, learned), io="float")
    wanted, found = (logits(model, {name: judged}) for model in (context.model, target))
    kl, _, squared = distances(wanted, found).sum(axis=1)
    return {
        "precision": precision, "group": group, "row": row, "seed": seed,
        "kl": float(kl) / len(judged),
        "sqnr_db": float(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / squared)),
        "agreement": float((wanted.argmax(1) == found.argmax(1)).mean()),
        "cpu_s": round(cpu_s, 1),
    }  # fmt: skip


def logits(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of a model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(to_proto(model).SerializeToString(), options)
    return run.run(None, feed)[0]


INTRODUCTION = f"""\
Made by `benchmarks/ablation.py`: ResNet-20, {", ".join(PRECISIONS)} with 8-bit weights in the first
and last layer, {SAMPLES} calibration images, {BASE.iterations} iterations a block. Figures are of
the integer network in onnxruntime against the float one on {JUDGED} other calibration images: mean
and sample standard deviation over the seeds (images, order and noise all change with the seed). CPU
seconds are of the learning alone, on a busy machine. `base` is what `--effort default` does, with
fewer samples and iterations: squared error, whole code space, bias, weight scales and activation
steps, free latents, Adam, activations rounded. Every other row changes one of these."""


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """docs/ablation.md."""
    parts = [
        "# Ablation of learned rounding",
        "",
        INTRODUCTION,
    ]
    for precision in PRECISIONS:
        for group, rows in VARIANTS.items():
            parts += [
                "",
                f"## {group}",
                "",
                "| | seeds | KL, nats | SQNR, dB | agreement, % | CPU s |",
            ]
            parts += ["|---|---|---|---|---|---|"]
            names = rows if group == "Base" else {"base": Variant(), **rows}
            for row in names:
                found = [x for x in lines if (x["precision"], x["row"]) == (precision, row)
                         and x["group"] in (group, "Base")]  # fmt: skip
                parts.append(_row(row, found))
    return "\n".join(parts) + "\n"


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return f"| {name} | 0 | not run | | | |"
    kl = _cell([run["kl"] for run in runs], 3)
    sqnr = _cell([run["sqnr_db"] for run in runs], 2)
    agreement = _cell([100 * run["agreement"] for run in runs], 1)
    cpu = mean(run["cpu_s"] for run in runs)
    return f"| {name} | {len(runs)} | {kl} | {sqnr} | {agreement} | {cpu:.0f} |"


def _cell(values: Sequence[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many runs")
    parser.add_argument("--write", action="store_true", help="write docs/ablation.md from the file")
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = [json.loads(line) for line in lines]
    if options.write:
        PAGE.write_text(page(known))
        return
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    done = {(x["precision"], x["group"], x["row"], x["seed"]) for x in known}
    left = [run for run in runs() if run not in done]
    for run in left[: options.most]:
        line = measure(*run, options.out.with_suffix(".plans"))
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
