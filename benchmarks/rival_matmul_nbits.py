"""onnxruntime's own quantiser of weights, as it comes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


class Reader:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, tokens: npt.NDArray[Any]) -> None:
        self.rows = [tokens[i : i + 1] for i in range(len(tokens))]

    def __iter__(self) -> Any:
        return iter([{"tokens": row} for row in self.rows])


def write(
    method: str, bits: int, group: int, model: Path, tokens: npt.NDArray[Any], out: Path
) -> None:
    """Quantise every MatMul with a constant weight to `bits` in groups."""
    logging.disable(logging.INFO)
    configs = {
        "onnxruntime nearest": lambda: DefaultWeightOnlyQuantConfig(
            block_size=group, is_symmetric=False, bits=bits
        ),
        "onnxruntime HQQ": lambda: HQQWeightOnlyQuantConfig(block_size=group, bits=bits),
        "onnxruntime k-quant": KQuantWeightOnlyQuantConfig,
        "onnxruntime GPTQ": lambda: GPTQWeightOnlyQuantConfig(
            Reader(tokens), block_size=128, actorder=True, mse=True
        ),
    }
    quantizer = MatMulNBitsQuantizer(
        str(model), block_size=group, bits=bits, is_symmetric=False, algo_config=configs[method]()
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)
    logging.disable(logging.NOTSET)
