"""Accuracy without calibration data, beside the same with data and beside onnxruntime on noise.

    python benchmarks/bench_data_free.py OUT.jsonl [--model resnet20] [--precision w8a8] [--seed 0]
        [--method free] [--held-out]

Methods: 'free' is ptq without --calib, 'data' ptq on the calibration samples, 'ort-noise' and
'ort-data' onnxruntime's static quantiser on standard normal noise and on the calibration samples
(U8S8, per channel, min-max, 8 bits only; weights reduced to 7 bits, because 8 saturate without
VNNI). One line of JSON a case; cases that OUT has are left out. `--held-out` measures on
calibration samples instead of the evaluation data. Needs the shared data (PTQ_SHARED).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import rival_ort
from bench_grids import SAMPLES, Batches, compared, lines, predict, read
from bench_rivals import CASES, SHARED

import ptq
from ptq.calib_data import input_specs, parse_preprocess
from ptq.model import load

NOISE_SAMPLES = 64
Case = dict[str, Any]


def ptq_free(case: Case, out: Path) -> None:
    """No samples at all."""
    recipe = ptq.Recipe.preset(case["precision"]).without_samples()
    recipe = recipe.replace(seed=case["seed"], grid=case["grid"])
    ptq.quantize(SHARED / CASES[case["model"]].model, None, recipe).save(out)


def ptq_data(case: Case, out: Path) -> None:
    """On the calibration samples."""
    data = CASES[case["model"]]
    recipe = ptq.Recipe.preset(case["precision"]).replace(
        seed=case["seed"], grid=case["grid"], samples=SAMPLES[case["model"]]
    )
    preprocess = parse_preprocess(data.preprocess)
    model, calib = SHARED / data.model, SHARED / data.calib
    ptq.quantize(model, calib, recipe, preprocess=preprocess).save(out)


def ort_noise(case: Case, out: Path) -> None:
    """The rival on standard normal noise."""
    model = SHARED / CASES[case["model"]].model
    shape = [size or NOISE_SAMPLES for size in input_specs(load(model))[0].shape]
    noise = np.random.default_rng(case["seed"]).standard_normal(shape).astype(np.float32)
    np.save(calib := out.with_suffix(".npy"), noise)
    rival_ort.quantize(model, out, calib, None, NOISE_SAMPLES, reduce_range=True)


def ort_data(case: Case, out: Path) -> None:
    """The rival on the calibration samples."""
    data = CASES[case["model"]]
    model, calib = SHARED / data.model, SHARED / data.calib
    samples = SAMPLES[case["model"]]
    rival_ort.quantize(model, out, calib, data.preprocess, samples, reduce_range=True)


METHODS: dict[str, Callable[[Case, Path], None]] = {
    "free": ptq_free,
    "data": ptq_data,
    "ort-noise": ort_noise,
    "ort-data": ort_data,
}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", choices=CASES)
    parser.add_argument("--precision", action="append")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--grid", action="append")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    known = lines(options.out)
    for seed, model, precision, grid, method in itertools.product(
        options.seed or [0, 1, 2],
        options.model or list(CASES),
        options.precision or ["w8a8", "w4a8"],
        options.grid or ["uniform"],
        options.method or list(METHODS),
    ):
        if method.startswith("ort") and (precision, grid) != ("w8a8", "uniform"):
            continue
        on = "held-out" if options.held_out else "eval"
        case = {"model": model, "precision": precision, "grid": grid, "method": method}
        case |= {"seed": seed, "on": on}
        if any(case.items() <= line.items() for line in known):
            continue
        line = case | measured(case, read(model, on, seed))
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def measured(case: Case, batches: Batches) -> dict[str, Any]:
    """Quantise, run, compare with the float model."""
    wanted = predict(SHARED / CASES[case["model"]].model, batches)
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        METHODS[case["method"]](case, path := Path(folder) / "model.onnx")
        seconds = perf_counter() - start
        return compared(wanted, predict(path, batches), batches) | {"seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
