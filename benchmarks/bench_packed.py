"""Products with 4-bit weights: compiled modules against onnxruntime's MatMulNBits, in turns.

    python benchmarks/bench_packed.py [--size 4096] [--rows 1 --rows 16 --rows 128] [--rounds 9]
        [--target llvm:native]

A [rows, size] x [size, size] product, w4a8 per channel, with weights as int8 and packed, one
thread. The rival has blocks of 32 and 128 and computes in int8, too (accuracy_level 4). Printed are
medians and quartiles of each time over that of the packed module, whose kernels alone are timed,
and how fast one row reads its packed weights, as a share of what numpy's sum reads at.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from bench_kernels import Product, with_module
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import ptq
from ptq.compilation import save_compiled
from ptq.targets.tvm.module import CompileOptions

REPEATS = 3
READ_BYTES = 1 << 28


def matmul_nbits(rows: int, size: int, block: int, x: np.ndarray) -> Callable[[], float]:
    """A function that runs the rival and returns microseconds."""
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.normal(size=(size, size)).astype(np.float32), "w")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, size])
        for name in "xy"
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", ends[:1], ends[1:], [weight])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, block_size=block, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(quantizer.model.model.SerializeToString(), options)
    return lambda: timed(lambda: session.run(None, {"x": x}))


def timed(run: Callable[[], object]) -> float:
    """Microseconds."""
    start = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - start)


def modules(rows: int, size: int, target: str, folder: Path) -> dict[str, Callable[[], float]]:
    """The product as modules with weights as int8 and packed."""
    model, shape = Product(rows, size, size).model(np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    recipe = ptq.Recipe(
        weight_bits=4, edge_bits=4, rounding="nearest", bias_correction=False, effort="fast"
    )
    result = ptq.quantize(model, [{"x": x}], recipe)
    runs = {}
    for weights in ("int8", "packed"):
        path = folder / f"{weights}.so"
        save_compiled(result, path, CompileOptions(target=target, weights=weights))
        runs[f"module, {weights}"] = with_module(path, x)
    return runs | {
        f"MatMulNBits, blocks of {block}": matmul_nbits(rows, size, block, x) for block in (32, 128)
    }


def report(rows: int, size: int, rounds: int, target: str) -> None:
    """Measure one shape and print its rows."""
    block = np.ones(READ_BYTES // 8)
    with tempfile.TemporaryDirectory() as folder:
        runs = modules(rows, size, target, Path(folder))
        runs["reading"] = lambda: timed(block.sum)
        for run in runs.values():
            run()
        times = np.asarray(
            [[min(run() for _ in range(REPEATS)) for run in runs.values()] for _ in range(rounds)]
        )
    taken = dict(zip(runs, times.T, strict=True))
    packed = taken["module, packed"]
    for name, own in taken.items():
        if name != "reading":
            low, middle, high = np.quantile(own / packed, [0.25, 0.5, 0.75])
            print(f"{rows} rows: {name:28} {middle:6.2f} ({low:.2f} to {high:.2f})")
    if rows == 1:
        share = (size * size / 2 / packed) / (READ_BYTES / taken["reading"])
        print(f"1 row: weights are read at {np.median(share):.2f} of numpy's sum", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--target", default="llvm:native")
    options = parser.parse_args()
    for rows in options.rows or (1, 16, 128):
        report(rows, options.size, options.rounds, options.target)


if __name__ == "__main__":
    main()
