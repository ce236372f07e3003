"""A decoder with weights of 4, 3 and 2 bits: perplexity by rounding, beside onnxruntime's own.

    python benchmarks/language_model.py          # until it says `trained`
    python benchmarks/bench_language.py [--seeds 0 1 2] [--samples 48] [--minutes 9]

The seed draws the calibration text, windows of 256 tokens from files that the model was not trained
on; perplexity is on windows of other files again, which nothing else has seen. Every case is saved,
and measured as a file by `ptq.perplexity_of`. Results go to --out, one JSON line each; what is
there is not run again. language_tables.py makes docs/language_models.md of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ptq
from ptq.evaluate import Evaluation, perplexity_of
from ptq.report.summary import file_bytes

Tokens = npt.NDArray[np.int64]

PLAIN = {"act_order": False, "descent": False, "match_float": False, "effort": "fast"}
METHODS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "nearest"},
    "GPTQ": PLAIN,
    "GPTQ, act-order": {**PLAIN, "act_order": True},
    "+ descent": {**PLAIN, "act_order": True, "descent": True},
    "+ float targets": {"effort": "fast"},
    "+ learned": {"effort": "best"},
}
"""Rounding -> recipe; each line from the third on has what the one above it has."""
UNSEEDED = ("float", "nearest", "onnxruntime nearest", "onnxruntime HQQ", "onnxruntime k-quant")
RIVALS = ("onnxruntime nearest", "onnxruntime HQQ", "onnxruntime k-quant", "onnxruntime GPTQ")
RIVAL_BITS = dict.fromkeys(RIVALS, (4,)) | {
    "onnxruntime nearest": (2, 4),
    "onnxruntime HQQ": (2, 4),
}
"""What onnxruntime 1.32 writes: its k-quant and GPTQ have 4 bits only, none has 3."""
INTEGER = (("w8a8", 0), ("w4a8", 0), ("w4a8", 32))
EVAL = 76
"""Windows that perplexity is measured on, drawn once."""


def cases(seeds: list[int]) -> Iterator[tuple[str, str, int, int]]:
    """(method, precision, group size, seed); a group size of 0 is a scale a channel."""
    yield "float", "float", 0, seeds[0]
    for seed in seeds:
        for bits in (2, 3, 4):
            for group in (128, 32):
                for method in (*METHODS, *RIVALS):
                    rival_lacks = method in RIVALS and bits not in RIVAL_BITS[method]
                    if not rival_lacks and (method not in UNSEEDED or seed == seeds[0]):
                        yield method, f"w{bits}a16", group, seed
        yield from (("integer", precision, group, seed) for precision, group in INTEGER)


def drawn(folder: Path, seed: int, samples: int) -> Tokens:
    """Calibration text: [samples, 256]."""
    rows: Tokens = np.load(folder / "calib.npz")["tokens"]
    return rows[np.random.default_rng(seed).permutation(len(rows))[:samples]]


def write(case: tuple[str, str, int, int], model: Path, tokens: Tokens, out: Path) -> None:
    """Quantise as the case says."""
    method, precision, group, seed = case
    if method in RIVALS:
        import rival_matmul_nbits

        rival_matmul_nbits.write(method, int(precision[1]), group, model, tokens, out)
    elif method == "integer":
        recipe = ptq.Recipe.preset(precision).replace(
            seed=seed, strict=True, effort="fast", group_size=group or None
        )
        ptq.quantize(model, [tokens], recipe).save(out)
    else:
        recipe = ptq.Recipe.preset(precision).replace(
            group_size=group, seed=seed, **METHODS[method]
        )
        ptq.quantize_weights(model, [tokens], recipe).save(out)


def verified(file: Path, tokens: Tokens) -> dict[str, int]:
    """Codes compared with the reference, and how many differ."""
    options = ptq.VerifyOptions(calib=[tokens[:4]], compare_float=False, threads=1)
    found = ptq.verify_file(file, options)
    return {"codes": found.codes, "mismatches": found.mismatches}


def measure(case: tuple[str, str, int, int], folder: Path, samples: int) -> dict[str, Any]:
    """Perplexity, bytes and CPU seconds of a case."""
    method, precision, group, seed = case
    model, tokens = folder / "decoder.onnx", drawn(folder, seed, samples)
    with tempfile.TemporaryDirectory() as temporary:
        out, start = Path(temporary) / "quantized.onnx", time.process_time()
        if method == "float":
            out = model
        else:
            write(case, model, tokens, out)
        seconds = time.process_time() - start
        found = perplexity_of(out, Evaluation(folder / "eval.npz", samples=EVAL, threads=1))
        checks = verified(out, tokens) if method == "integer" else {}
        return {
            "method": method,
            "precision": precision,
            "group": group,
            "seed": seed,
            "samples": samples,
            "perplexity": found.perplexity,
            "tokens": found.tokens,
            "bytes": file_bytes(out),
            "cpu_s": round(seconds, 1),
            **checks,
        }


def main() -> None:
    """Measure what the log does not have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/language"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=9, help="begin no case after them")
    parser.add_argument("--only", default="", help="of /method/precision/group/seed")
    parser.add_argument("--out", type=Path, default=Path("out/language.jsonl"))
    options = parser.parse_args()
    start = time.monotonic()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["method"], r["precision"], r["group"], r["seed"]) for r in map(json.loads, lines)}
    for case in cases(options.seeds):
        if case in done or options.only not in "/" + "/".join(map(str, case)):
            continue
        if time.monotonic() - start > 60 * options.minutes:
            print("more is left; run this again")
            return
        record = measure(case, options.folder, options.samples)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)


if __name__ == "__main__":
    main()
