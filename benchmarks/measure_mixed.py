"""Mixed against uniform precision on the shared models: accuracy at the same average weight bits.

    python benchmarks/measure_mixed.py RESULTS.jsonl [--model resnet20] [--seeds 0 1 2]
        [--activations 8 4] [--effort fast default] [--only KIND:AIM ...] [--work DIR]

Needs the shared data (PTQ_SHARED, default ../shared). Average bits count every weight, of the first
and last layers too; the inputs of those two stay at 8 bits. Everything is chosen on calibration
data (a quarter of it held out) with closed-form rounding; the evaluation data is only measured on.
With effort 'fast' the networks measured are those of the choice; with 'default' they are learned on
all samples, as `ptq quantize --avg-bits` does after choosing, and nothing is held out.
The samples are a random part of the calibration data, drawn by the seed. Rows that are in RESULTS
are not measured again; benchmarks/mixed_tables.py writes docs/mixed.md from them.

Kinds of rows: 'uniform' (every layer alike), 'edges8' (first and last at 8 bits, ptq's default),
'ordered' (the average met by wide layers first, in the order of the network), 'mixed' (average bits
as the budget), 'mixed-size' (the size of the uniform network as the budget).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import ptq
from ptq.calib_data import input_specs, labelled, parse_preprocess
from ptq.mixed.choose import Chooser, precision_map
from ptq.mixed.costs import average_bits
from ptq.mixed.points import Judge, Workshop
from ptq.mixed.study import Study, open_study
from ptq.model import load
from ptq.passes.allocate_bits import pareto_hull
from ptq.precision import Precision
from ptq.recipe import Recipe
from ptq.report.metrics import Accuracy, Fidelity
from ptq.report.session import open_session
from ptq.report.summary import model_bytes

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
AVERAGES = (4.0, 3.0, 2.5)
SWEEP = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5, 5.0, 6.0)


@dataclass(frozen=True)
class Case:
    """A model, its data, and how many calibration samples a seed draws."""

    model: str
    calib: str
    evaluation: str
    preprocess: str
    samples: int


CASES = {
    "resnet20": Case(
        "models/resnet20_cifar10.onnx", "data/cifar10_calib.npz", "data/cifar10_eval.npz",
        "imagenet", 512,
    ),
    "efficientnet": Case(
        "models/efficientnet_lite0.onnx", "data/imagenet_calib", "data/imagenet_eval", "lite", 160,
    ),
}  # fmt: skip


class Evaluation:
    """The evaluation data and the float model's logits on it."""

    def __init__(self, case: Case) -> None:
        specs = input_specs(load(SHARED / case.model))
        pairs = labelled(SHARED / case.evaluation, specs, parse_preprocess(case.preprocess))
        self.pairs = list(pairs)
        session = open_session(SHARED / case.model)
        self.wanted = [next(iter(session.predict(batch).values())) for batch, _ in self.pairs]

    def measure(self, model: Any) -> dict[str, float | None]:
        """Top-1 of float and of the model, agreement, SQNR of the logits."""
        session = open_session(model)
        fidelity, right, best = Fidelity(), Accuracy(), Accuracy()
        for (batch, labels), wanted in zip(self.pairs, self.wanted, strict=True):
            got = next(iter(session.predict(batch).values()))
            fidelity.add(wanted, got)
            right.add(got, labels)
            best.add(wanted, labels)
        scores = fidelity.scores()
        return {
            "float_top1": best.top1,
            "top1": right.top1,
            "agreement": scores.top1_agreement,
            "sqnr_db": scores.sqnr_db,
        }


def uniform(study: Study, bits: int) -> dict[str, Precision]:
    """Every layer alike."""
    return {unit.name: Precision(bits) for unit in study.context.outline.weighted}


def edges8(study: Study, bits: int) -> dict[str, Precision]:
    """First and last layers at 8 bits."""
    units = study.context.outline.weighted
    return {unit.name: Precision(8 if unit.edge else bits) for unit in units}


def ordered(study: Study, chooser: Chooser, average: float) -> dict[str, Precision]:
    """The next wider width for the first layers, for as many as the average allows."""
    narrow = int(average)
    widths = {unit.name: narrow for unit in study.context.outline.weighted}
    for name in widths:
        wider = {**widths, name: narrow + 1}
        if average_bits(chooser.sizes, wider) <= average:
            widths = wider
    return {name: Precision(bits) for name, bits in widths.items()}


def allocations(study: Study, chooser: Chooser) -> Iterator[tuple[str, float, Any]]:
    """(kind, average bits aimed at, a function that makes the allocation)."""
    for bits in (4, 3, 2):
        yield "uniform", bits, lambda b=bits: uniform(study, b)
    yield "edges8", 4, lambda: edges8(study, 4)
    yield "ordered", 2.5, lambda: ordered(study, chooser, 2.5)
    for average in AVERAGES:
        budget = {"average_bits": average}
        yield "mixed", average, lambda b=budget: chooser.allocate(b).precisions
    yield (
        "mixed-size",
        4,
        lambda: chooser.allocate({"size_bytes": uniform_size(chooser, 4)}).precisions,
    )
    swept = [chooser.allocate({"average_bits": a}) for a in SWEEP]
    points = [(a.costs["average_bits"], a.loss) for a in swept]
    for index in pareto_hull(points):
        yield "hull", SWEEP[index], lambda a=swept[index]: a.precisions


def uniform_size(chooser: Chooser, bits: int) -> float:
    """Estimated bytes of all weights at one width."""
    found = 0.0
    for choice in chooser.problem.choices:
        found += next(
            o.costs["size_bytes"] for o in choice.options if o.precision.weight_bits == bits
        )
    return found


def predicted(chooser: Chooser, precisions: Mapping[str, Precision]) -> float:
    """The sum of the scores."""
    scores = chooser.importance.weights
    return sum(scores[name][p.weight_bits or 8] for name, p in precisions.items())


def run(name: str, seed: int, activations: int, options: argparse.Namespace) -> None:
    """Measure everything of one model, seed and activation width that is not in the results."""
    case = CASES[name]
    known = {key(row) for row in read(options.results)}
    recipe = Recipe(samples=case.samples, seed=seed, activation_bits=activations)
    study = open_study(
        SHARED / case.model, SHARED / case.calib, recipe.replace(effort="fast"), options.work,
        preprocess=parse_preprocess(case.preprocess),
    )  # fmt: skip
    chooser = Chooser(study)
    workshop, evaluation = Workshop(chooser, Judge(study)), Evaluation(case)
    for (kind, aim, allocate), effort in product(allocations(study, chooser), options.effort):
        row: dict[str, Any] = {
            "model": name, "seed": seed, "activations": activations, "kind": kind, "aim": aim,
            "effort": effort,
        }  # fmt: skip
        unwanted = options.only and f"{kind}:{aim:g}" not in options.only
        if key(row) in known or unwanted or (kind == "hull" and effort != "fast"):
            continue
        start = perf_counter()
        precisions = allocate()
        row |= measure(workshop, evaluation, recipe, precisions, row)
        row["seconds"] = perf_counter() - start
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "widths"}), flush=True)


def measure(
    workshop: Workshop,
    evaluation: Evaluation,
    recipe: Recipe,
    precisions: Mapping[str, Precision],
    row: Mapping[str, Any],
) -> dict[str, Any]:
    """Quantise an allocation with the row's effort, and measure it."""
    case, said = CASES[row["model"]], precision_map(precisions)
    widths = {layer: p.weight_bits or 8 for layer, p in precisions.items()}
    found: dict[str, Any] = {
        "average_bits": average_bits(workshop.chooser.sizes, widths),
        "predicted": predicted(workshop.chooser, precisions),
        "widths": list(widths.values()),
    }
    if row["effort"] == "fast":
        result = workshop.build(said)
        found["held_out"] = asdict(workshop.judge.quality(result.model))
    else:
        result = ptq.quantize(
            SHARED / case.model,
            SHARED / case.calib,
            recipe.replace(precision_map=said, effort=row["effort"]),
            preprocess=parse_preprocess(case.preprocess),
        )
    found["file_bytes"] = model_bytes(result.model)
    if row["kind"] != "hull":  # there the loss on held-out samples is what is asked for
        found |= evaluation.measure(result.model)
    return found


def read(results: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line.strip()]


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row[k] for k in ("model", "seed", "activations", "kind", "aim", "effort"))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--activations", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--effort", choices=("fast", "default"), nargs="+", default=["fast"])
    parser.add_argument("--only", nargs="+", metavar="KIND:AIM", help="such as mixed:2.5")
    parser.add_argument("--work", type=Path, default=Path("out/mixed"))
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    for name in options.model:
        for activations in options.activations:
            for seed in options.seeds:
                run(name, seed, activations, options)


if __name__ == "__main__":
    main()
