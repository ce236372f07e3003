"""Small networks with the products that language models have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH, HIDDEN = 32, 48


def weight(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return (rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)


def gated_network(seed: int = 0, dtype: type = np.float32) -> onnx.ModelProto:
    """x + down(sigmoid(gate(x)) * up(x)) twice, then a Gemm: [N, 32] -> [N, 8]."""
    rng = np.random.default_rng(seed)
    nodes, constants, x = [], {}, "x"
    for layer in range(2):
        for name, shape in (
            ("gate", (WIDTH, HIDDEN)),
            ("up", (WIDTH, HIDDEN)),
            ("down", (HIDDEN, WIDTH)),
        ):
            constants[f"{name}{layer}.weight"] = weight(rng, *shape)
        nodes += [
            helper.make_node("MatMul", [x, f"gate{layer}.weight"], [f"g{layer}"], f"gate{layer}"),
            helper.make_node("MatMul", [x, f"up{layer}.weight"], [f"u{layer}"], f"up{layer}"),
            helper.make_node("Sigmoid", [f"g{layer}"], [f"s{layer}"], f"sigmoid{layer}"),
            helper.make_node("Mul", [f"s{layer}", f"u{layer}"], [f"m{layer}"], f"mul{layer}"),
            helper.make_node(
                "MatMul", [f"m{layer}", f"down{layer}.weight"], [f"d{layer}"], f"down{layer}"
            ),
            helper.make_node("Add", [x, f"d{layer}"], [f"x{layer}"], f"add{layer}"),
        ]
        x = f"x{layer}"
    constants["head.weight"] = weight(rng, WIDTH, 8).T.copy()
    constants["head.bias"] = rng.normal(size=8).astype(np.float32)
    nodes.append(helper.make_node("Gemm", [x, "head.weight", "head.bias"], ["y"], "head", transB=1))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("x", kind, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", kind, ["N", 8])],
        [numpy_helper.from_array(a.astype(dtype), name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def inputs(rows: int, seed: int = 1) -> np.ndarray:
    """Correlated, with a few loud columns, as activations are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) / 6
    return (mixed * np.where(np.arange(WIDTH) % 11 == 0, 4.0, 1.0)).astype(np.float32)
