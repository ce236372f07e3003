"""MiniLM on STS-B: Spearman's correlation of float, ptq and onnxruntime's own quantisers.

    python benchmarks/bench_minilm.py MODEL.safetensors [--seeds 0 1 2] [--only w8a8 ...]
    python benchmarks/bench_minilm.py MODEL.safetensors --latency

MODEL.safetensors: see minilm.py. Needs the shared data (PTQ_SHARED, default ../shared): sentences
of stsb_calib to quantise on (the seed chooses which), pairs of stsb_eval to measure on. Batch and
length are dynamic everywhere. Results go to --out, one JSON line each; what is there is not run
again. Latency: batch 1, 16, 64 and 128 tokens, interleaved, medians of the ratios to float.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import ptq

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
LENGTHS, ROUNDS = (16, 64, 128), 30
RECIPES = {
    "w8a8": ptq.Recipe(),
    "w8a8, residual in 8 bits": ptq.Recipe(residual_bits=8),
    "w4a8": ptq.Recipe.from_bits(4),
}
RIVALS = ("onnxruntime dynamic", "onnxruntime static")


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def export(checkpoint: Path, out: Path) -> None:
    """The float ONNX model, batch and length free."""
    ids = torch.ones(2, 7, dtype=torch.int64)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=minilm.LONGEST)}
    names = ("input_ids", "attention_mask")
    model = ptq.load(
        minilm.pretrained(checkpoint),
        example_inputs=dict.fromkeys(names, ids),
        dynamic_shapes=dict.fromkeys(names, free),
    )
    ir.save(model, out)


def make(name: str, float_model: Path, out: Path, samples: int, seed: int) -> None:
    """Write the quantised model called `name`."""
    batches = minilm.batches(SHARED / "data/stsb_calib.npz", samples, seed)
    if name in RECIPES:
        result = ptq.quantize(float_model, batches, RECIPES[name].replace(seed=seed))
        left = [i.name for i in result.outline.islands]
        assert not left, f"float islands: {left}"
        result.save(out, force=True)
    elif name == "onnxruntime dynamic":
        quantize_dynamic(float_model, out, per_channel=True, weight_type=QuantType.QInt8)
    else:
        quantize_static(
            float_model, out, _Reader(iter(batches)), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """A stock onnxruntime session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def score(path: Path) -> float:
    """Spearman's correlation times 100 on stsb_eval."""
    model = session(path)
    names = [value.name for value in model.get_inputs()]

    def embed(batch: dict[str, Any]) -> Any:
        return model.run(None, {name: batch[name] for name in names})[0]

    return minilm.spearman(embed, SHARED / "data/stsb_eval.npz")


def accuracy(options: argparse.Namespace, folder: Path) -> None:
    """Print and keep the scores of every model and seed."""
    done = {}
    if options.out.exists():
        records = [json.loads(line) for line in options.out.read_text().splitlines()]
        done = {(r["model"], r["seed"]): r for r in records}
    names = [n for n in ("float", *RECIPES, *RIVALS) if not options.only or n in options.only]
    for name in names:
        once = name in ("float", "onnxruntime dynamic")
        for seed in options.seeds[:1] if once else options.seeds:
            if (name, seed) not in done:
                path = folder / "float.onnx"
                started = time.process_time()
                if name != "float":
                    path = folder / "quantised.onnx"
                    make(name, folder / "float.onnx", path, options.samples, seed)
                record = {
                    "model": name,
                    "seed": seed,
                    "samples": options.samples,
                    "spearman": round(score(path), 3),
                    "megabytes": round(path.stat().st_size / 1e6, 1),
                    "cpu_s": round(time.process_time() - started),
                }
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                done[name, seed] = record
            print(done[name, seed], flush=True)
        scores = [done[name, s]["spearman"] for s in options.seeds if (name, s) in done]
        spread = f" +- {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
        print(f"{name:28} {np.mean(scores):.3f}{spread}", flush=True)


def latency(options: argparse.Namespace, folder: Path) -> None:
    """Median ratios of time to the float model's, batch 1."""
    paths = {"float": folder / "float.onnx"}
    for name in ("w8a8", "w4a8", *RIVALS):
        paths[name] = folder / f"{name.replace(' ', '_')}.onnx"
        make(name, paths["float"], paths[name], 32, 0)
    sessions = {name: session(path, options.threads) for name, path in paths.items()}
    for length in LENGTHS:
        ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            for name, model in sessions.items():
                names = [value.name for value in model.get_inputs()]
                started = time.perf_counter()
                model.run(None, {n: feeds[n] for n in names})
                times[name].append(1e3 * (time.perf_counter() - started))
        for name, taken in times.items():
            ratio = np.median(np.divide(times["float"], taken))
            print(f"{length:4} tokens  {name:22} {np.median(taken):8.2f} ms  x {ratio:.2f}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/minilm.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        export(options.checkpoint, Path(folder) / "float.onnx")
        (latency if options.latency else accuracy)(options, Path(folder))


if __name__ == "__main__":
    main()
