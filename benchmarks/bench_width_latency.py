"""Latency of one network at several weight widths, and predicted against measured latency.

    python benchmarks/bench_width_latency.py [--samples 64]

Needs the shared data (PTQ_SHARED, default ../shared). Prints the times of ResNet-20 at 4 and 2 bits
relative to 8 bits (interleaved, in one run), and for a network with widths drawn at random what the
table of layers predicts and what is measured right after.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from ptq.calib_data import parse_preprocess
from ptq.mixed.latency import COMPARED, layer_latencies
from ptq.mixed.open_workshop import Options, open_workshop
from ptq.precision import Precision
from ptq.recipe import Recipe

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no shared data at {SHARED}: set PTQ_SHARED")
    with tempfile.TemporaryDirectory() as folder:
        workshop = open_workshop(
            SHARED / "models/resnet20_cifar10.onnx",
            SHARED / "data/cifar10_calib.npz",
            Recipe(samples=options.samples),
            Options(Path(folder)),
            preprocess=parse_preprocess("imagenet"),
        )
        found = layer_latencies(workshop)
        print(found.runtime)
        print("relative to 8 bits:", {b: round(r, 3) for b, r in found.ratios.items()})
        generator = np.random.default_rng(0)
        mixed = {name: Precision(int(generator.choice(COMPARED))) for name in found.layers}
        measured = workshop.judge.latency_ms(workshop.model(mixed), seconds=4.0)
        error = 100 * (found.total_ms / measured - 1)
        print(f"predicted {found.total_ms:.3f} ms, measured {measured:.3f} ms ({error:+.1f} %)")


if __name__ == "__main__":
    main()
