"""AdaRound of AIMET and Quark, in their own environments: run by bench_adaround.py.

    PYTHON rival_adaround.py aimet|quark FOLDER ITERATIONS

Reads model.onnx, calib.npy and eval.npy from FOLDER; writes logits.npy and result.json (seconds and
peak memory of the quantisation alone). Imports nothing of ptq.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

BATCH = 32


def aimet(folder: Path, name: str, calib: np.ndarray, iterations: int) -> Callable[[Any], Any]:
    """W4A8, per channel, first and last weights at 8 bits."""
    from aimet_onnx import QuantizationSimModel, apply_adaround, int4, int8

    model = onnx.load(folder / "model.onnx")
    batches = [{name: calib[i : i + BATCH]} for i in range(0, len(calib), BATCH)]
    sim = QuantizationSimModel(
        model, param_type=int4, activation_type=int8, dummy_input={name: calib[:1]}
    )
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    for node in (weighted[0], weighted[-1]):
        sim.qc_quantize_op_dict[node.input[1]].set_bitwidth(8)
    apply_adaround(sim, batches, iterations)
    sim.compute_encodings(batches)
    return lambda x: sim.session.run(None, {name: x})[0]


def quark(folder: Path, name: str, calib: np.ndarray, iterations: int) -> Callable[[Any], Any]:
    """W8A8 (it has no 4-bit convolution): its own A8W8 AdaRound configuration."""
    import onnxruntime as ort
    from quark.onnx import A8W8_ADAROUND_QCONFIG, ModelQuantizer

    class Reader:
        def __init__(self) -> None:
            self.left = iter([{name: calib[i : i + 1]} for i in range(len(calib))])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    config = A8W8_ADAROUND_QCONFIG
    (learning,) = config.algo_config
    learning.num_iterations, learning.batch_size = iterations, BATCH
    learning.dynamic_batch = True
    out = folder / "quark.onnx"
    ModelQuantizer(config).quantize_model(str(folder / "model.onnx"), str(out), Reader())
    run = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return lambda x: run.run(None, {name: x})[0]


TOOLS = {"aimet": aimet, "quark": quark}


def main() -> None:
    """Quantise, measure, run."""
    tool, folder, iterations = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    calib, images = np.load(folder / "calib.npy"), np.load(folder / "eval.npy")
    name = onnx.load(folder / "model.onnx").graph.input[0].name
    wall, cpu = time.monotonic(), time.process_time()
    run = TOOLS[tool](folder, name, calib, iterations)
    found = {
        "wall_s": time.monotonic() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    parts = [run(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    np.save(folder / "logits.npy", np.concatenate(parts))
    (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
