"""Give a model with folded batch norms its statistics back, as an unfolded one would carry them.

    python benchmarks/unfold_batch_norm.py MODEL OUT CALIB [--preprocess SPEC]

Every convolution is followed by a BatchNormalization whose beta and gamma are the mean and standard
deviation of its output on CALIB, and which computes the identity: so does the network with samples
from its training data, up to rounding. For measuring quantisation without data on shared models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from ptq.calib_data import input_specs, open_calibration
from ptq.model import load

BATCH = 32


def unfold(model: Path, out: Path, calib: Path, preprocess: str | None) -> None:
    """Write the model with its batch norms."""
    proto = onnx.load(model)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    names = [node.output[0] for node in convolutions]
    moments = measure(proto, names, model, calib, preprocess)
    for node in convolutions:
        name = node.output[0]
        mean, deviation = moments[name]
        node.output[0] = f"{name}/raw"
        constants = {"gamma": deviation, "beta": mean, "mean": mean, "var": deviation**2}
        for role, array in constants.items():
            tensor = numpy_helper.from_array(array.astype(np.float32), f"{name}/{role}")
            proto.graph.initializer.append(tensor)
        operands = [f"{name}/raw", *(f"{name}/{role}" for role in constants)]
        position = list(proto.graph.node).index(node) + 1
        norm = helper.make_node("BatchNormalization", operands, [name], f"{name}/bn", epsilon=0.0)
        proto.graph.node.insert(position, norm)
    onnx.save(proto, out)


def measure(
    proto: onnx.ModelProto, names: list[str], model: Path, calib: Path, preprocess: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation, [channels] each, of some values on the samples."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = {name: np.zeros(3, object) for name in names}
    for batch in open_calibration(calib, input_specs(load(model)), preprocess=preprocess).batches(
        BATCH
    ):
        for name, y in zip(names, session.run(names, dict(batch)), strict=True):
            rows = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1).astype(np.float64)
            sums[name] += np.array([rows.sum(1), np.square(rows).sum(1), rows.shape[1]], object)
    result = {}
    for name, (first, second, count) in sums.items():
        mean = first / count
        result[name] = mean, np.sqrt(np.maximum(second / count - mean**2, 1e-12))
    return result


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("--preprocess")
    options = parser.parse_args()
    unfold(options.model, options.out, options.calib, options.preprocess)


if __name__ == "__main__":
    main()
