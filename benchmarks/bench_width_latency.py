"""Latency by weight width, and a budget on it: predicted against measured.

    python benchmarks/bench_width_latency.py [--target llvm:native] [--samples 64] [--work DIR]

Needs the shared data (PTQ_SHARED, default ../shared). Prints the time of ResNet-20 at every weight
width relative to 8 bits (interleaved, in one run); for budgets of a quarter, half and three
quarters of the way from its fastest to its slowest allocation, the widths chosen; and what the
table of layers predicts for them beside what is measured. Without --target: onnxruntime, where all
widths run the same kernels and a network with widths drawn at random stands for the chosen one.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ptq.calib_data import parse_preprocess
from ptq.mixed.budgets import with_overhead
from ptq.mixed.latency import confirm, layer_latencies, runtime_of, with_latencies
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.mixed.points import Precisions, Workshop
from ptq.passes.allocate_bits import allocate_bits
from ptq.precision import Precision
from ptq.recipe import Recipe

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
PARTS = (0.25, 0.5, 0.75)


def drawn(workshop: Workshop) -> dict[str, Precisions]:
    """Widths at random."""
    generator, widths = np.random.default_rng(0), workshop.chooser.weight_widths
    layers = [choice.layer for choice in workshop.chooser.problem.choices]
    return {"at random": {name: Precision(int(generator.choice(widths))) for name in layers}}


def chosen(workshop: Workshop, target: str) -> dict[str, Precisions]:
    """The best allocations within budgets."""
    problem = with_latencies(workshop, with_overhead(workshop), runtime_of(target, {}))
    fastest = allocate_bits(problem, {}, "latency_ms").costs["latency_ms"]
    slowest = allocate_bits(problem, {}).costs["latency_ms"]
    found = {}
    for part in PARTS:
        limit = fastest + part * (slowest - fastest)
        found[f"within {limit:.3f} ms"] = allocate_bits(problem, {"latency_ms": limit}).precisions
    return found


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="of `ptq compile`")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("out/latency"))
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    workshop = open_workshop(
        SHARED / "models/resnet20_cifar10.onnx",
        SHARED / "data/cifar10_calib.npz",
        Recipe(samples=options.samples, residual_bits=8),
        Options(options.work),
        preprocess=parse_preprocess("imagenet"),
    )
    runtime = runtime_of(options.target, {})
    found = layer_latencies(workshop, runtime)
    print(found.runtime)
    print("relative to the widest:", {b: round(r, 3) for b, r in found.ratios.items()}, flush=True)
    cases = chosen(workshop, options.target) if options.target else drawn(workshop)
    for name, precisions in cases.items():
        widths = Counter(p.weight_bits for p in precisions.values())
        took = confirm(workshop, precisions, runtime)
        print(f"{name}: layers by width {dict(sorted(widths.items()))}; predicted "
              f"{took.predicted_ms:.3f} ms, measured {took.measured_ms:.3f} ms "
              f"({100 * took.error:+.1f} %)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
