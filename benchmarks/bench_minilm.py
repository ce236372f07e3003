"""MiniLM on STS-B: Spearman's correlation and latency of float, ptq and its rivals.

    python benchmarks/bench_minilm.py MODEL.safetensors [--seeds 0 1 2] [--only w8a8 ...]
    python benchmarks/bench_minilm.py MODEL.safetensors --latency
    python benchmarks/bench_minilm.py MODEL.safetensors --rival NAME=FILE.onnx

--latency times one thread by its CPU time, in turns, which a busy machine hardly disturbs; modules
are compiled for each length.

MODEL.safetensors: see minilm.py. Needs the shared data (PTQ_SHARED, default ../shared): sentences
of stsb_calib to quantise on (the seed chooses which), pairs of stsb_eval to measure on; nothing is
chosen by those. Batch and length are dynamic everywhere. --rival measures a file that another tool
made of `float.onnx` in --models. Results go to --out, one JSON line each, and what is there is not
run again; transformer_tables.py makes docs/transformers.md of it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import onnx_ir as ir
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import ptq
from ptq.compilation import compile_file
from ptq.report.compiled import open_file
from ptq.report.cpu import surroundings
from ptq.report.session import Session, open_session
from ptq.report.significance import median_interval
from ptq.targets.inspect_runtime import runtime_graph
from ptq.targets.tvm.module import CompileOptions

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
LENGTHS, SECONDS, WARMUP, FEWEST = (16, 64, 128), 20.0, 3, 23
W8, W4 = ptq.Recipe(), ptq.Recipe.from_bits(4).replace(effort="fast")
RECIPES = {
    "w8a8": W8,
    "w4a8": W4,
    "w4a8, learned": W4.replace(effort="default"),
    "w8a8, 8-bit residual": W8.replace(residual_bits=8),
    "w8a8, not balanced": W8.replace(balance=False),
    "w8a8, neither": W8.replace(residual_bits=8, balance=False),
    "w4a8, neither": W4.replace(residual_bits=8, balance=False),
    "w8a8, cpu vnni": W8.replace(cpu="vnni"),
}
TIMED = ("float", "w8a8", "w4a8", "onnxruntime dynamic", "onnxruntime static")
COMPILED = ("w8a8", "w4a8")
NARROW = "7-bit weights"
"""The rival's own advice for CPUs without VNNI, whose 8-bit products saturate."""
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention")


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def export(checkpoint: Path, out: Path) -> None:
    """The float ONNX model, batch and length free."""
    names = ("input_ids", "attention_mask")
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=minilm.LONGEST)}
    model = ptq.load(
        minilm.pretrained(checkpoint),
        example_inputs={name: torch.ones(2, 7, dtype=torch.int64) for name in names},
        dynamic_shapes=dict.fromkeys(names, free),
    )
    ir.save(model, out)


def by_ptq(name: str, source: Path, out: Path, batches: list[dict[str, Any]], seed: int) -> None:
    """Ours, with no float island."""
    result = ptq.quantize(source, batches, RECIPES[name].replace(seed=seed, strict=True))
    result.save(out, force=True)


def dynamic(name: str, source: Path, out: Path, batches: list[dict[str, Any]], seed: int) -> None:
    """onnxruntime's, activations rounded at run time; norms, softmax and sums stay float."""
    quantize_dynamic(
        source, out, per_channel=True, weight_type=QuantType.QInt8, reduce_range=NARROW in name
    )


def static(name: str, source: Path, out: Path, batches: list[dict[str, Any]], seed: int) -> None:
    """onnxruntime's, as QDQ, min-max ranges."""
    quantize_static(
        source, out, _Reader(iter(batches)), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=NARROW in name,
    )  # fmt: skip


MAKERS: dict[str, Callable[[str, Path, Path, list[dict[str, Any]], int], None]] = {
    **dict.fromkeys(RECIPES, by_ptq),
    "onnxruntime dynamic": dynamic,
    f"onnxruntime dynamic, {NARROW}": dynamic,
    "onnxruntime static": static,
    f"onnxruntime static, {NARROW}": static,
}
WITHOUT_SEED = ("float", "onnxruntime dynamic", f"onnxruntime dynamic, {NARROW}")


def made(name: str, seed: int, options: argparse.Namespace) -> tuple[Path, float]:
    """The model called `name`, made unless it is there, and the CPU seconds that took."""
    if name in options.rivals:
        return options.rivals[name], 0.0
    path = options.models / ("float.onnx" if name == "float" else f"{name}.{seed}.onnx")
    started = time.process_time()
    if not path.exists():
        batches = minilm.batches(SHARED / "data/stsb_calib.npz", options.samples, seed)
        MAKERS[name](name, options.models / "float.onnx", path, batches, seed)
    return path, time.process_time() - started


def score(path: Path) -> float:
    """Spearman's correlation times 100 on stsb_eval."""
    session = open_session(path, threads=1)

    def embed(batch: dict[str, Any]) -> Any:
        return next(iter(session.predict(batch).values()))

    return minilm.spearman(embed, SHARED / "data/stsb_eval.npz")


def accuracy(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make the model, score it, and count the products that run in float."""
    path, cpu_s = made(name, seed, options)
    operators = Counter(runtime_graph(path).operators)
    return {
        "spearman": round(score(path), 3),
        "float_products": sum(operators[op] + operators[f"com.microsoft.{op}"]
                              for op in FLOAT_PRODUCTS),
        "samples": options.samples,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "cpu_s": round(cpu_s),
    }  # fmt: skip


def opened(length: int, options: argparse.Namespace) -> dict[str, Session]:
    """Every model to be timed, on one thread; modules are compiled for this length."""
    paths = {name: made(name, 0, options)[0] for name in (*TIMED, *options.rivals)}
    for name in COMPILED:
        module = options.models / f"{name}.{length}.so"
        if not module.exists():
            compile_file(paths[name], module, CompileOptions(sizes={"length": length}))
        paths[f"{name}, compiled"] = module
    return {name: open_file(path, name=name, threads=1) for name, path in paths.items()}


def latency(length: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Batch 1, one thread, CPU time: medians of runs in turns, and of their ratios to float's."""
    sessions = opened(length, options)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    rounds: list[list[float]] = []
    around, started = surroundings(), time.perf_counter()
    while time.perf_counter() - started < SECONDS or len(rounds) < FEWEST:
        rounds.append([cpu_ms(session, feeds) for session in sessions.values()])
    times = np.asarray(rounds[WARMUP:])
    ratios = times[:, :1] / times
    for column, name in enumerate(sessions):
        yield {
            "model": name,
            "tokens": length,
            "threads": 1,
            "p50_ms": round(float(np.median(times[:, column])), 2),
            "speedup": round(float(np.median(ratios[:, column])), 3),
            "interval": [round(end, 3) for end in median_interval(ratios[:, column], 0.95)],
            "load": around.load,
            "cpu": str(around.cpu),
        }


def cpu_ms(session: Session, feeds: dict[str, Any]) -> float:
    """CPU time of this thread for one run."""
    started = time.thread_time()
    session.run(feeds)
    return 1e3 * (time.thread_time() - started)


def run(options: argparse.Namespace) -> None:
    """Everything asked for that the log does not have."""
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["model"], r.get("seed"), r.get("tokens")) for r in map(json.loads, lines)}

    def keep(record: dict[str, Any]) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)

    if options.latency:
        for length in LENGTHS:
            if ("float", None, length) not in done:
                for record in latency(length, options):
                    keep(record)
        return
    for seed in options.seeds:
        for name in options.only or ("float", *MAKERS, *options.rivals):
            once = name in (*WITHOUT_SEED, *options.rivals)
            if (name, seed, None) not in done and not (once and seed != options.seeds[0]):
                keep({"model": name, "seed": seed, **accuracy(name, seed, options)})


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--models", type=Path, default=Path("out/minilm"))
    parser.add_argument("--out", type=Path, default=Path("out/minilm.jsonl"))
    options = parser.parse_args()
    options.rivals = {n: Path(f) for n, _, f in (item.partition("=") for item in options.rival)}
    options.models.mkdir(parents=True, exist_ok=True)
    if not (options.models / "float.onnx").exists():
        export(options.checkpoint, options.models / "float.onnx")
    run(options)


if __name__ == "__main__":
    main()
