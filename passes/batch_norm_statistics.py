"""What batch normalisation remembers of the training data: read before it is folded away.

The output of BN has mean beta and standard deviation |gamma| in each channel on the data that it
was trained on. Folding keeps that output's name, so the statistics can be looked up afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.passes.rewriting import constant, input_at, is_op


@dataclass(frozen=True)
class Statistics:
    """mean, deviation: [channels] float32, of one tensor over samples and positions."""

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]


def batch_norm_statistics(model: ir.Model) -> Mapping[str, Statistics]:
    """Name of each BatchNormalization's output -> its statistics, where they are constants."""
    found = {}
    for node in model.graph:
        if not is_op(node, "BatchNormalization") or not node.outputs[0].name:
            continue
        gamma, beta = constant(input_at(node, 1)), constant(input_at(node, 2))
        if gamma is not None and beta is not None:
            deviation = np.abs(np.asarray(gamma, np.float32))
            found[node.outputs[0].name] = Statistics(np.asarray(beta, np.float32), deviation)
    return found
