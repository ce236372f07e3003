"""Latency of the decoder: float, weights only in floats and int8, integers, onnxruntime's own.

    python benchmarks/time_language.py [--folder out/language] [--out out/language_times.json]

All models are timed interleaved, batch 1, one thread, at 1, 16 and 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import rival_matmul_nbits

import ptq
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.session import open_session

LENGTHS = (1, 16, 128)


def models(folder: Path) -> dict[str, Path]:
    """Every model, written where it is not there yet."""
    source, tokens = folder / "decoder.onnx", np.load(folder / "calib.npz")["tokens"][:8]
    weights = {
        "w4a16": {},
        "w4a16 int8": {"compute": "int8"},
        "w2a16": {"weight_bits": 2},
        "w2a16 int8": {"weight_bits": 2, "compute": "int8"},
    }
    found = {"float": source}
    for name, change in weights.items():
        found[name] = folder / f"time.{name.replace(' ', '-')}.onnx"
        if not found[name].exists():
            recipe = ptq.Recipe.preset("w4a16").replace(rounding="nearest", **change)
            ptq.quantize_weights(source, None, recipe).save(found[name])
    found["w8a8"] = folder / "time.w8a8.onnx"
    if not found["w8a8"].exists():
        recipe = ptq.Recipe(effort="fast", rounding="nearest", bias_correction=False)
        ptq.quantize(source, [tokens], recipe).save(found["w8a8"])
    found["onnxruntime W4"] = folder / "time.rival.onnx"
    rival_matmul_nbits.write("onnxruntime nearest", 4, 128, source, tokens, found["onnxruntime W4"])
    return found


def main() -> None:
    """Write, time, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/language"))
    parser.add_argument("--seconds", type=float, default=20, help="of all models at each length")
    parser.add_argument("--out", type=Path, default=Path("out/language_times.json"))
    options = parser.parse_args()
    sessions = {n: open_session(p, name=n, threads=1) for n, p in models(options.folder).items()}
    lengths: dict[str, Any] = {}
    for length in LENGTHS:
        batch = {"tokens": np.arange(length, dtype=np.int64)[None]}
        found = bench(sessions, batch, BenchOptions(seconds=options.seconds, threads=1))
        lengths[str(length)] = {
            timing.name: {"p50_ms": timing.p50_ms, "speedup": speedup, "interval": interval}
            for timing, speedup, interval in zip(
                found.timings, found.speedups, found.speedup_intervals, strict=True
            )
        }
        print(length, lengths[str(length)], flush=True)
    record = {"cpu": str(found.surroundings.cpu), "load": os.getloadavg()[0], "lengths": lengths}
    options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
