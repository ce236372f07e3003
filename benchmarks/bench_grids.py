"""Accuracy with uniform and power-exponent grids, before and after learned rounding.

    python benchmarks/bench_grids.py OUT.jsonl [--model resnet20] [--precision w4a8] [--held-out]
        [--grid uniform --grid power] [--effort fast] [--seed 0 --seed 1]

Every case is a line of JSON, written when it is done; cases that OUT has already are left out, so
that an interrupted run goes on where it was. A seed chooses the samples and everything random.
`--held-out` measures against the float model on calibration samples that the case did not see, for
choosing between methods; the evaluation data are for the final figures only. `--table` prints mean
and standard deviation over the seeds of what OUT holds. Needs the shared data (PTQ_SHARED).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from bench_rivals import CASES, SHARED, session

import ptq
from ptq.calib_data import input_specs, labelled, parse_preprocess
from ptq.calib_data.calibration import choose
from ptq.distances import divergences
from ptq.model import load
from ptq.report.metrics import Fidelity
from ptq.result import Result

Batches = list[tuple[dict[str, Any], np.ndarray]]

SAMPLES = {"resnet20": 256, "efficientnet": 64}
TOTAL = {"resnet20": 1024, "efficientnet": 250}
HELD_OUT = {"resnet20": 512, "efficientnet": 96}


@dataclass(frozen=True)
class Case:
    """One network quantised in one way. on: 'eval', or 'held-out' calibration samples."""

    model: str
    precision: str
    grid: str
    effort: str
    seed: int
    on: str


def run(case: Case, batches: Batches, wanted: Sequence[np.ndarray]) -> dict[str, Any]:
    """Quantise and measure one case."""
    data = CASES[case.model]
    recipe = ptq.Recipe.preset(case.precision).replace(
        grid=case.grid, effort=case.effort, seed=case.seed, samples=SAMPLES[case.model]
    )
    start = perf_counter()
    result = ptq.quantize(
        SHARED / data.model,
        SHARED / data.calib,
        recipe,
        preprocess=parse_preprocess(data.preprocess),
    )
    seconds = perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        result.save(path := Path(folder) / "model.onnx")
        size_bytes = path.stat().st_size
        outputs = predict(path, batches)
    return {
        **asdict(case),
        **compared(wanted, outputs, batches),
        "seconds": round(seconds, 1),
        "size_bytes": size_bytes,
        "exponents": exponents(result),
    }


def compared(
    wanted: Sequence[np.ndarray], outputs: Sequence[np.ndarray], batches: Batches
) -> dict[str, Any]:
    """How near outputs are to the labels and to the float model's."""
    fidelity = Fidelity()
    for want, got in zip(wanted, outputs, strict=True):
        fidelity.add(want, got)
    scores = fidelity.scores()
    labels = np.concatenate([y for _, y in batches])
    return {
        "top1": float((np.concatenate(outputs).argmax(1) == labels).mean()),
        "agree": scores.top1_agreement,
        "sqnr_db": scores.sqnr_db,
        "kl": float(divergences(np.concatenate(wanted), np.concatenate(outputs)).mean()),
    }


def exponents(result: Result) -> dict[str, Any]:
    """Layer -> its a = 1/p, with 'h' where levels are at half-integer positions."""
    grids = {name: weight.grid for name, weight in result.plan.weights.items()}
    return {name: f"{1 / g.power:.2f}{'h' * g.half}" for name, g in grids.items()}


def predict(path: Path, batches: Batches) -> list[np.ndarray]:
    """First output of a model on every batch."""
    run_model = session(path, 1)
    return [run_model.run(None, batch)[0] for batch, _ in batches]


def read(name: str, on: str, seed: int) -> Batches:
    """Labelled batches to measure on."""
    data = CASES[name]
    specs, preprocess = input_specs(load(SHARED / data.model)), parse_preprocess(data.preprocess)
    if on == "eval":
        return list(labelled(SHARED / data.evaluation, specs, preprocess))
    seen = choose(TOTAL[name], SAMPLES[name], seed)
    unseen = np.setdiff1d(np.arange(TOTAL[name]), seen)[: HELD_OUT[name]]
    return list(_only(labelled(SHARED / data.calib, specs, preprocess), set(unseen.tolist())))


def _only(stream: Iterator[tuple[dict[str, Any], np.ndarray]], kept: set[int]) -> Iterator[Any]:
    first = 0
    for batch, labels in stream:
        index = [i for i in range(len(labels)) if first + i in kept]
        first += len(labels)
        if index:
            yield {key: x[index] for key, x in batch.items()}, labels[index]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """What was asked for, seed by seed, so that an early stop leaves whole comparisons."""
    on = "held-out" if options.held_out else "eval"
    for effort, seed, model, precision, grid in itertools.product(
        options.effort, options.seed, options.model, options.precision, options.grid
    ):
        yield Case(model, precision, grid, effort, seed, on)


def lines(path: Path) -> list[dict[str, Any]]:
    """What a file of results holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path) -> None:
    """Print mean and standard deviation over the seeds."""
    groups = defaultdict(list)
    for line in lines(path):
        key = ("on", "model", "precision", "effort", "grid")
        groups[tuple(line[k] for k in key)].append(line)
    print("on        model         precision effort   grid        n  top-1         agree  SQNR dB")
    for key, found in sorted(groups.items()):
        top, agree, sqnr = ([line[k] for line in found] for k in ("top1", "agree", "sqnr_db"))
        spread = [float(np.std(x, ddof=1)) if len(x) > 1 else float("nan") for x in (top, sqnr)]
        print(
            f"{key[0]:10}{key[1]:14}{key[2]:10}{key[3]:9}{key[4]:12}{len(found)}  "
            f"{np.mean(top):.4f} ± {spread[0]:.4f} {np.mean(agree):.4f} "
            f"{np.mean(sqnr):6.2f} ± {spread[1]:.2f}"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", choices=CASES)
    parser.add_argument("--precision", action="append")
    parser.add_argument("--grid", action="append")
    parser.add_argument("--effort", action="append")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table(options.out)
        return
    options.model = options.model or list(CASES)
    options.precision = options.precision or ["w4a8", "w3a8", "w2a8", "w4a4"]
    options.grid = options.grid or ["uniform", "power", "auto"]
    options.effort = options.effort or ["fast", "default"]
    options.seed = options.seed or [0, 1, 2]
    known = {tuple(line[k] for k in Case.__annotations__) for line in lines(options.out)}
    batches: dict[tuple[str, int], tuple[Batches, list[np.ndarray]]] = {}
    for case in cases(options):
        if tuple(asdict(case).values()) in known:
            continue
        key = (case.model, case.seed if options.held_out else 0)
        if key not in batches:
            found = read(case.model, case.on, case.seed)
            batches[key] = found, predict(SHARED / CASES[case.model].model, found)
        line = run(case, *batches[key])
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({k: line[k] for k in ("precision", "grid", "effort", "seed", "top1", "sqnr_db")})


if __name__ == "__main__":
    main()
