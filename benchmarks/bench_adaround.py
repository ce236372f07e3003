"""Wall time, CPU time and peak memory beside AIMET's and Quark's AdaRound, on the same samples.

    python benchmarks/bench_adaround.py --aimet PYTHON --quark PYTHON [--iterations 300]

PYTHON is the interpreter of an environment with aimet-onnx or amd-quark; they do not agree with
ptq's. Every tool runs in a process of its own, one after the other, with the same number of
threads. AIMET learns at W4A8, Quark at W8A8 (it has no 4-bit convolution). Needs the shared data
(PTQ_SHARED, default ../shared). Prints one line a tool and the ratios to ptq.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ptq.calib_data import input_specs, labelled, open_calibration, parse_preprocess
from ptq.model import load
from ptq.report.metrics import Fidelity

SHARED = Path(os.environ.get("PTQ_SHARED", Path(__file__).parents[2] / "shared"))
MODEL, CALIB = "models/resnet20_cifar10.onnx", "data/cifar10_calib.npz"
EVALUATION, PREPROCESS = "data/cifar10_eval.npz", "imagenet"
HERE = Path(__file__).parent
PRECISIONS = {"aimet": "w4a8", "quark": "w8a8"}

OURS = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, onnx, onnxruntime as ort, ptq
folder, precision, effort = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
calib, images = np.load(folder / "calib.npy"), np.load(folder / "eval.npy")
name = onnx.load(folder / "model.onnx").graph.input[0].name
wall, cpu = time.monotonic(), time.process_time()
recipe = ptq.Recipe.preset(precision).replace(effort=effort, samples=len(calib))
result = ptq.quantize(folder / "model.onnx", {name: calib}, recipe)
found = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu,
         "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
result.save(folder / "ptq.onnx", force=True)
run = ort.InferenceSession(str(folder / "ptq.onnx"), providers=["CPUExecutionProvider"])
parts = [run.run(None, {name: images[i : i + 32]})[0] for i in range(0, len(images), 32)]
np.save(folder / "logits.npy", np.concatenate(parts))
(folder / "result.json").write_text(json.dumps(found))
"""


def write_data(folder: Path, samples: int, images: int) -> np.ndarray:
    """model.onnx, calib.npy and eval.npy in `folder`; returns the labels."""
    specs, preprocess = input_specs(load(SHARED / MODEL)), parse_preprocess(PREPROCESS)
    shutil.copy(SHARED / MODEL, folder / "model.onnx")
    calib = open_calibration(SHARED / CALIB, specs, preprocess=preprocess, limit=samples)
    np.save(folder / "calib.npy", np.concatenate(list(_arrays(calib.batches(32)))))
    pairs = list(labelled(SHARED / EVALUATION, specs, preprocess))
    every = np.concatenate(list(_arrays(batch for batch, _ in pairs)))
    np.save(folder / "eval.npy", every[:images])
    return np.concatenate([labels for _, labels in pairs])[:images]


def _arrays(batches: Any) -> Iterator[np.ndarray]:
    return (next(iter(batch.values())) for batch in batches)


def judged(folder: Path, labels: np.ndarray) -> dict[str, Any]:
    """The result of the tool that has just run, with its accuracy."""
    images, found = np.load(folder / "eval.npy"), np.load(folder / "logits.npy")
    run = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    wanted = np.concatenate(
        [run.run(None, {name: images[i : i + 32]})[0] for i in range(0, len(images), 32)]
    )
    fidelity = Fidelity()
    fidelity.add(wanted, found)
    return json.loads((folder / "result.json").read_text()) | {
        "top1": float((found.argmax(1) == labels).mean()),
        "agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "sqnr_db": fidelity.scores().sqnr_db,
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aimet", metavar="PYTHON")
    parser.add_argument("--quark", metavar="PYTHON")
    parser.add_argument("--iterations", type=int, default=300, help="of AdaRound, a layer")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--images", type=int, default=1000, help="to evaluate on")
    parser.add_argument("--effort", default="default")
    options = parser.parse_args()
    for tool, precision in PRECISIONS.items():
        python = getattr(options, tool)
        if python is None:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            labels = write_data(folder, options.samples, options.images)
            rival = [python, str(HERE / "rival_adaround.py"), tool, name, str(options.iterations)]
            ours = [sys.executable, "-c", OURS, name, precision, options.effort]
            lines = {}
            for title, command in ((tool, rival), ("ptq", ours)):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                lines[title] = judged(folder, labels)
                print(precision, title, json.dumps(lines[title]), flush=True)
        ratios = {key: lines["ptq"][key] / lines[tool][key] for key in ("wall_s", "cpu_s")}
        print(f"{precision}: ptq takes {ratios['wall_s']:.2f} of {tool}'s wall time, "
              f"{ratios['cpu_s']:.2f} of its CPU time")  # fmt: skip


if __name__ == "__main__":
    main()
