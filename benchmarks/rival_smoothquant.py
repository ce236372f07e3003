"""Quantise MiniLM with SmoothQuant of onnx-neural-compressor: a rival of bench_minilm.py.

    python -m venv rival && rival/bin/pip install onnx-neural-compressor onnx==1.18 \
        onnxruntime==1.22 prettytable psutil pydantic 'setuptools<81'
    rival/bin/python benchmarks/rival_smoothquant.py FLOAT.onnx stsb_calib.npz OUT.onnx [--seed 0]

It needs older onnx and onnxruntime than ptq, so it has an environment of its own, and imports
nothing of ptq. alpha 0.5, static min-max ranges, weights by channel. Sentences are chosen as in
minilm.batches.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np


def sentences(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """The sentences that ptq is calibrated on, all padded to the longest: the rival stacks them."""
    data = np.load(path)
    ids, mask = (data[k].astype(np.int64) for k in ("input_ids", "attention_mask"))
    longest = int(mask.sum(-1).max())
    ids, mask = (x.reshape(-1, x.shape[-1])[:, :longest] for x in (ids, mask))
    chosen = np.random.default_rng(seed).permutation(len(ids))[:count]
    return [{"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]} for i in chosen]


def main() -> None:
    """Parse the command line, quantise."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

        def rewind(self) -> None:
            self.left = iter(sentences(options.calib, options.samples, options.seed))

    chosen = config.StaticQuantConfig(
        calibration_data_reader=Reader(),
        quant_format=QuantFormat.QOperator,
        per_channel=True,
        extra_options={"SmoothQuant": True, "SmoothQuantAlpha": 0.5},
    )
    quantize(str(options.model), str(options.out), chosen)


if __name__ == "__main__":
    main()
