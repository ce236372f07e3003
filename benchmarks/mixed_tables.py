"""Write docs/mixed.md from the results of measure_mixed.py, and print the same tables.

    python benchmarks/mixed_tables.py RESULTS.jsonl [--notes FILE.md]

Mean and sample standard deviation over the seeds. --notes: text for the end of the page, such as
what other benchmarks printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr

PAGE = Path(__file__).parents[1] / "docs" / "mixed.md"
Row = Mapping[str, Any]

INTRODUCTION = """\
# Mixed precision, as measured

Made by `benchmarks/measure_mixed.py` and `benchmarks/mixed_tables.py`. Widths are chosen with
closed-form rounding on 512 calibration images of ResNet-20, 160 of EfficientNet-Lite0, drawn by the
seed, a quarter of them held out; learned networks are then made on all of these, as `ptq quantize
--avg-bits` does. Mean and sample standard deviation over the seeds. Average bits count all weights;
the inputs of the first and last layers have 8 bits. KL is on the held-out images; top-1, agreement
with float and SQNR of the logits are on 5,000 CIFAR-10 or 250 ImageNet images, on which nothing was
chosen.
"""
KINDS = {
    "uniform": "uniform {aim:g}",
    "edges8": "{aim:g}, first and last 8 (the default)",
    "mixed": "mixed, {aim:.1f} on average",
    "mixed-size": "mixed, the size of uniform {aim:g}",
    "ordered": "3 in the first layers, then 2",
}
ORDER = (
    ("uniform", 4), ("edges8", 4), ("mixed", 4.0), ("mixed-size", 4), ("uniform", 3),
    ("mixed", 3.0), ("ordered", 2.5), ("mixed", 2.5), ("uniform", 2),
)  # fmt: skip
TITLES = {"resnet20": "ResNet-20", "efficientnet": "EfficientNet-Lite0"}
RIVALS = {
    ("resnet20", 8): "A rival's mixed 2/4/8 at 4 bits on average: top-1 .7756 (float .8124), "
    "agreement .902, 10.9 dB; an earlier figure, on every fourth image of the whole test set.",
    ("efficientnet", 8): "A rival's uniform 4 bits: top-1 .687 (float .8827), agreement .723, "
    "3.3 dB; an earlier figure, on other images.",
}
ROUNDING = {"fast": "closed forms", "default": "learned"}
HEADS = (
    "| | rounding | seeds | bits | file, kB | held-out KL | top-1 | agreement | SQNR, dB |\n|"
    + " --- |" * 9
)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several values, sample standard deviation."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line a kind and way of rounding, in a fixed order."""
    yield HEADS
    for (kind, aim), effort in product(ORDER, ROUNDING):
        found = [r for r in rows if (r["kind"], r["aim"], r["effort"]) == (kind, aim, effort)]
        if not found:
            continue
        losses = [row["held_out"]["loss"] for row in found if "held_out" in row]
        cells = (
            KINDS[kind].format(aim=aim),
            ROUNDING[effort],
            str(len(found)),
            f"{mean(row['average_bits'] for row in found):.3f}",
            f"{mean(row['file_bytes'] for row in found) / 1000:.1f}",
            spread(losses, 4) if losses else "",
            spread([row["top1"] for row in found], 4),
            spread([row["agreement"] for row in found], 4),
            spread([row["sqnr_db"] for row in found], 2),
        )
        yield f"| {' | '.join(cells)} |"


def rank_correlations(rows: Sequence[Row]) -> Iterator[str]:
    """Spearman's, of predicted and measured loss over the hull, seed by seed."""
    found = []
    for seed in sorted({row["seed"] for row in rows}):
        hull = [row for row in rows if row["kind"] == "hull" and row["seed"] == seed]
        if len(hull) > 2:
            measured = [row["held_out"]["loss"] for row in hull]
            rho = spearmanr([row["predicted"] for row in hull], measured).statistic
            found.append(f"{rho:.3f} (seed {seed}, {len(hull)} points)")
    if found:
        yield f"Spearman of predicted and measured KL over the hull: {', '.join(found)}."


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The whole page, without its notes."""
    yield INTRODUCTION
    cases = dict.fromkeys((row["model"], row["activations"]) for row in rows)
    for model, activations in sorted(cases, key=lambda case: (case[0] != "resnet20", -case[1])):
        own = [r for r in rows if (r["model"], r["activations"]) == (model, activations)]
        float_top1 = next(row["float_top1"] for row in own if "float_top1" in row)
        yield f"## {TITLES[model]}, {activations}-bit activations\n"
        yield f"Float top-1 {float_top1:.4f}.\n"
        yield from table(own)
        yield ""
        yield from rank_correlations(own)
        if (model, activations) in RIVALS:
            yield RIVALS[model, activations]
        yield ""


def main() -> None:
    """Parse the command line, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--notes", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    text = "\n".join(page(rows))
    if options.notes is not None:
        text += "\n" + options.notes.read_text()
    PAGE.write_text(text.rstrip() + "\n")
    print(text)


if __name__ == "__main__":
    main()
