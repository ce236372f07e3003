"""A small float CNN as an ONNX file, with samples: what the command line is tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SHAPE = (3, 8, 8)
CLASSES = 4


def small_cnn(*, weight: np.ndarray | None = None, last: str = "Identity") -> onnx.ModelProto:
    """logits = Gemm(mean(Relu(Conv(x)))), then the operator `last`; the batch is dynamic."""
    rng = np.random.default_rng(7)
    w = rng.normal(size=(6, 3, 3, 3)).astype(np.float32) if weight is None else weight
    constants = {
        "w": w,
        "b": (0.1 * rng.normal(size=len(w))).astype(np.float32),
        "head": rng.normal(size=(CLASSES, len(w))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head"], ["g"], name="gemm", transB=1),
        helper.make_node(last, ["g"], ["logits"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write_cnn(folder: Path) -> Path:
    """model.onnx, samples.npz (x) and eval.npz (x, labels) in `folder`; returns the model."""
    onnx.save(small_cnn(), folder / "model.onnx")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, *SHAPE)).astype(np.float32)
    x += 0.5 * np.roll(x, 1, axis=-1)
    np.savez(folder / "samples.npz", x=x)
    np.savez(folder / "eval.npz", x=x[:20], labels=rng.integers(0, CLASSES, 20))
    return folder / "model.onnx"
