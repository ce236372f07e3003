"""Make docs/language_models.md of what bench_language.py and time_language.py measured.

python benchmarks/language_tables.py [--log out/language.jsonl] [--times out/times.json]
        [--note "What a reader must know of these runs."]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_language import INTEGER, METHODS, RIVALS

Record = dict[str, Any]
HERE = Path(__file__).parent

HEAD = """# Language models

Made by `benchmarks/bench_language.py` and `benchmarks/time_language.py`. A decoder of 3.9 million
parameters (4 layers of width 256, rotary positions, RMSNorm, SiLU gates), trained in about ten
CPU minutes by benchmarks/language_model.py on the source text of Python's standard library in
1,024 byte pairs. The seed draws the calibration text, {samples} windows of 256 tokens; perplexity
is on {tokens} tokens of files that neither training nor calibration saw. Mean and sample standard
deviation over the seeds; a figure without deviation is of one run. Nothing was chosen on what is
measured here: defaults were chosen on calibration text that was not drawn. The network has seen
1.4 million tokens only.

## Weights only

Perplexity; the float network's is {float:.3f} ({float_mb:.2f} MB). `GPTQ, act-order`, descent
on codes and scales, float targets and learning each come on top of what is before it;
`+ float targets` is the default, `+ learned` is `--effort best`. onnxruntime is its own quantiser
of weights (matmul_nbits_quantizer, asymmetric) on the same float file, with the same calibration
text for GPTQ; it has no 3 bits, and k-quant and GPTQ in 4 bits only. Codes of 2 and 3 bits become
4-bit ones when onnxruntime loads the file.
"""
AFTER = """
## On integers

8-bit activations, every operator between tokens and logits on integers (`--strict`), closed forms.
`differ`: codes that differ from the reference's in onnxruntime, all tensors, four windows. An
integer product accumulates over all inputs of a channel, so the scale of a group is the channel's
times a small integer (VS-Quant, arXiv 2102.04503), which onnxruntime multiplies in when it loads
the weights: the operators are the same as without groups.

"""


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def weights_only(records: Sequence[Record], group: int) -> str:
    """Perplexity of every method at every width, and what it takes."""
    bits = (4, 3, 2)
    rows = []
    for method in (*METHODS, *RIVALS):
        own = [r for r in records if r["method"] == method and r["group"] == group]
        cells, sizes = [], []
        for width in bits:
            found = [r for r in own if r["precision"] == f"w{width}a16"]
            cells.append(spread([r["perplexity"] for r in found]))
            sizes.append(f"{found[-1]['bytes'] / 1e6:.2f}" if found else "")
        if own:
            seeds = len({r["seed"] for r in own})
            cpu = f"{statistics.mean(r['cpu_s'] for r in own):.0f}"
            rows.append([method, seeds, *cells, " / ".join(s for s in sizes if s), cpu])
    names = [f"W{width}" for width in bits]
    return table(["rounding", "seeds", *names, "MB", "CPU s"], rows)


def on_integers(records: Sequence[Record]) -> str:
    """Perplexity and mismatches of the integer networks."""
    rows = []
    for precision, group in INTEGER:
        key = ("integer", precision, group)
        own = [r for r in records if (r["method"], r["precision"], r["group"]) == key]
        if own:
            checked = f"{sum(r['mismatches'] for r in own)} of {sum(r['codes'] for r in own):,}"
            size = f"{own[0]['bytes'] / 1e6:.2f}"
            rows.append(
                [
                    precision,
                    group or "channel",
                    len(own),
                    spread([r["perplexity"] for r in own]),
                    size,
                    checked,
                ]
            )
    return table(["", "group", "seeds", "perplexity", "MB", "differ"], rows)


def latency(times: dict[str, Any]) -> str:
    """Medians and speed-ups of one interleaved run."""
    rows = []
    for name in next(iter(times["lengths"].values())):
        cells: list[str] = []
        for found in times["lengths"].values():
            low, high = found[name]["interval"]
            ratio = f"{found[name]['speedup']:.2f} ({low:.2f} to {high:.2f})"
            cells += [f"{found[name]['p50_ms']:.2f}", ratio]
        rows.append([name, *cells])
    heads = [x for length in times["lengths"] for x in (f"{length} token(s), ms", "x")]
    text = (
        f"\n## Latency\n\nBatch 1, one thread, {times['cpu']}; the load of the machine's two cores "
        f"was {times['load']:.1f}: trust the intervals.\nMedians; `x` is float's time over "
        "the model's in interleaved rounds, with its 95 % interval.\n`int8`: `--compute int8`.\n\n"
    )
    return text + table(["", *heads], rows)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("out/language.jsonl"))
    parser.add_argument("--times", type=Path, default=Path("out/language_times.json"))
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs/language_models.md")
    parser.add_argument("--note", action="append", default=[])
    options = parser.parse_args()
    records = [json.loads(line) for line in options.log.read_text().splitlines()]
    (base,) = [r for r in records if r["method"] == "float"]
    text = HEAD.format(
        samples=base["samples"],
        tokens=f"{base['tokens']:,}",
        float=base["perplexity"],
        float_mb=base["bytes"] / 1e6,
    )
    for group in (128, 32):
        text += f"\nGroups of {group}:\n\n{weights_only(records, group)}"
    text += AFTER + on_integers(records)
    if options.times.exists():
        text += latency(json.loads(options.times.read_text()))
    if options.note:
        text += "\n## Of these runs\n\n" + "".join(f"- {note}\n" for note in options.note)
    options.page.write_text(text)


if __name__ == "__main__":
    main()
