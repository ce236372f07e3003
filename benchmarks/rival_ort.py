"""Quantise a model with onnxruntime's own quantiser: the rival of our tables.

    python benchmarks/rival_ort.py MODEL OUT CALIB [--preprocess SPEC] [--samples N]

U8S8, per channel, QOperator, min-max, after its own pre-processing: its best 8-bit setting here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ptq.calib_data import input_specs, open_calibration
from ptq.model import load


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantize(
    model: Path,
    out: Path,
    calib: Path,
    preprocess: str | None,
    samples: int,
    entropy: bool = False,
    *,
    reduce_range: bool = False,
) -> None:
    """Write the rival's quantised model to `out`.

    reduce_range: weights of 7 bits, its way not to saturate on CPUs without VNNI.
    """
    specs = input_specs(load(model))
    data = open_calibration(calib, specs, preprocess=preprocess, limit=samples)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            _Reader(iter(data.batches(1))),
            quant_format=QuantFormat.QOperator,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Entropy if entropy else CalibrationMethod.MinMax,
        )
    ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("--preprocess")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--entropy", action="store_true")
    options = parser.parse_args()
    quantize(
        options.model, options.out, options.calib, options.preprocess, options.samples,
        options.entropy,
    )  # fmt: skip


if __name__ == "__main__":
    main()
