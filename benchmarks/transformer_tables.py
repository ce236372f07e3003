"""Write docs/transformers.md from the logs of bench_minilm.py and bench_vit.py.

python benchmarks/transformer_tables.py [--minilm out/minilm.jsonl] [--vit out/vit.jsonl]
        [--note "What a reader must know of these runs."]

Where there is no log of the vision transformer, the page keeps what it says of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"
Record = dict[str, Any]

INTRODUCTION = """\
# Transformers as integers

Made by `benchmarks/bench_minilm.py` and `benchmarks/bench_vit.py`; mean and sample standard
deviation over the seeds, which choose the calibration samples. Nothing was chosen on what is
measured here. Rounding is in closed form (`--effort fast`) unless told otherwise.

## MiniLM on STS-B

Spearman's correlation of the cosines of all-MiniLM-L6-v2's sentence embeddings with people's
scores, times 100, on 689 pairs of the STS benchmark. Calibrated on {samples} sentences of other
pairs. Batch and length are dynamic. `float products` counts the matrix products that run in float
in the graph that onnxruntime optimises. Unless told otherwise the residual stream has 16 bits and
layer norms are balanced.
"""
LATENCY = """\
## MiniLM, latency

Batch 1, {threads} thread(s), {cpu}; one minute's load of the machine {load}, so milliseconds are
CPU time, medians; `x` is float's time divided by the model's, the median over interleaved rounds,
and its 95 % interval. Compiled modules were made for each length (`ptq compile --size length=16`);
the other models take any.
"""
VIT_TITLE = "A small vision transformer"
VIT = f"""\
## {VIT_TITLE}

4 layers of width 64, trained on scikit-learn's digits and exported through torch.export; 597 images
that neither training nor calibration saw (float {{accuracy:.2f}} %), 128 calibration images. The
first and last layers have 8-bit weights and inputs. Passes off: `--residual-bits 8 --no-balance`.
"""


def logged(path: Path) -> list[Record]:
    """One record a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of these keys, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return groups


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, ended by an empty line."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells) + "\n"


def minilm_accuracy(records: Sequence[Record]) -> Iterable[str]:
    """One row a model."""
    scores = [r for r in records if "spearman" in r]
    reference = next(r["spearman"] for r in scores if r["model"] == "float")
    rows = []
    for (name,), runs in grouped(scores, "model").items():
        found = [r["spearman"] for r in runs]
        rows.append((
            name, len(runs), spread(found), f"{mean(found) - reference:+.2f}",
            runs[0]["float_products"], runs[0]["megabytes"], round(mean(r["cpu_s"] for r in runs)),
        ))  # fmt: skip
    yield INTRODUCTION.format(samples=scores[-1]["samples"])
    head = ("", "seeds", "Spearman", "minus float", "float products", "MB", "CPU s")
    yield table(head, rows)


def minilm_latency(records: Sequence[Record]) -> Iterable[str]:
    """One row a model, two columns a length."""
    timed = [r for r in records if "tokens" in r]
    if not timed:
        return
    lengths = sorted({r["tokens"] for r in timed})
    rows = []
    for (name,), runs in grouped(timed, "model").items():
        found = {r["tokens"]: r for r in runs}
        cells = [
            (f"{r['p50_ms']:.1f}", f"{r['speedup']:.2f} ({r['interval'][0]:.2f} to "
             f"{r['interval'][1]:.2f})")
            for r in (found[length] for length in lengths)
        ]  # fmt: skip
        rows.append((name, *(text for pair in cells for text in pair)))
    loads = sorted(r["load"] for r in timed)
    last = timed[-1]
    yield LATENCY.format(
        threads=last["threads"], cpu=last["cpu"], load=f"{loads[0]:.1f} to {loads[-1]:.1f}"
    )
    yield table(("", *(t for n in lengths for t in (f"{n} tokens, ms", "x"))), rows)


def vit(records: Sequence[Record]) -> Iterable[str]:
    """One row a precision and setting."""
    reference = next(r for r in records if r["precision"] == "float")
    rows = []
    for (precision, passes), runs in grouped(records, "precision", "passes").items():
        if precision != "float":
            measured = [[r[key] for r in runs] for key in ("accuracy", "agreement", "sqnr_db")]
            rows.append((precision, passes, len(runs), *map(spread, measured)))
    yield VIT.format(accuracy=reference["accuracy"])
    yield table(("", "passes", "seeds", "accuracy, %", "agreement, %", "SQNR, dB"), rows)


def kept(section: str) -> str:
    """A section of the page as it stands."""
    text = PAGE.read_text()
    start = text.index(f"## {section}")
    end = text.find("\n## ", start)
    return text[start:end].rstrip() + "\n"


def main() -> None:
    """Parse the command line, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, default=Path("out/minilm.jsonl"))
    parser.add_argument("--vit", type=Path, default=Path("out/vit.jsonl"))
    parser.add_argument("--note", action="append", default=[])
    options = parser.parse_args()
    text = logged(options.minilm)
    pictures = vit(logged(options.vit)) if options.vit.exists() else [kept(VIT_TITLE)]
    notes = ["## Of these runs", "", *(f"- {note}" for note in options.note), ""]
    parts = [*minilm_accuracy(text), *minilm_latency(text), *pictures]
    PAGE.write_text("\n".join([*parts, *(notes if options.note else [])]))


if __name__ == "__main__":
    main()
