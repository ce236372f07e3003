"""Time of single layers: compiled kernels against onnxruntime's int8 ones, shape by shape.

    python benchmarks/bench_kernels.py kernels.jsonl [--network resnet50 ...] [--rounds 9]
        [--target llvm:native]
    python benchmarks/bench_kernels.py kernels.jsonl --table

Every layer is a model of its own, quantised to w8a8 on random samples, run by onnxruntime and as a
compiled module, one thread each, in turns. Compared is what computes: the module's kernels and
onnxruntime's profiled nodes without those that quantise, dequantise and move data at the boundary,
which a network does not have between its layers. The least of three runs counts in every round;
printed are medians, and multiplications a second as a share of what vpdpbusd does on registers
alone, where the target has it. A line of JSON a layer, written when it is measured; layers that the
file has are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from tvm.tirx.script import builder as T

import ptq
from ptq import runtime
from ptq.compilation import save_compiled
from ptq.kernels import dot
from ptq.kernels.dot import Isa
from ptq.kernels.kernel import Parameter
from ptq.kernels.vectors import span
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.features import features_of
from ptq.targets.tvm.module import CompileOptions
from ptq.targets.tvm.tune import on_zeros

Array = np.ndarray
REPEATS = 3
BOUNDARY = ("Quantize", "Dequantize", "Copy", "Fill", "Border", "Transpose", "Reshape")
"""Beginnings of the names of kernels and operators that do not compute."""


@dataclass(frozen=True)
class Convolution:
    """k x k, from `inputs` channels of size x size; depthwise if groups == inputs."""

    inputs: int
    outputs: int
    size: int
    k: int = 1
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        kind = "depthwise " if self.groups > 1 else ""
        stride = f" / {self.stride}" if self.stride > 1 else ""
        ends = f"{self.inputs} -> {self.outputs}"
        return f"{kind}{self.k}x{self.k}{stride}, {ends}, {self.size}x{self.size}"

    @property
    def macs(self) -> int:
        """Multiplications of one sample."""
        positions = (-(-self.size // self.stride)) ** 2
        return positions * self.outputs * self.k**2 * self.inputs // self.groups

    def model(self, rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
        """A model of this layer alone, and the shape of its input."""
        weight = rng.normal(size=(self.outputs, self.inputs // self.groups, self.k, self.k))
        pads = [self.k // 2] * 4
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], strides=[self.stride] * 2, pads=pads, group=self.groups
        )
        shape = (1, self.inputs, self.size, self.size)
        return single(node, {"w": weight, "b": rng.normal(size=self.outputs)}, shape), shape


@dataclass(frozen=True)
class Product:
    """[rows, inputs] times a constant [inputs, outputs]."""

    rows: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"product, {self.rows} x {self.inputs} x {self.outputs}"

    @property
    def macs(self) -> int:
        """Multiplications."""
        return self.rows * self.inputs * self.outputs

    def model(self, rng: np.random.Generator) -> tuple[onnx.ModelProto, tuple[int, ...]]:
        """A model of this layer alone, and the shape of its input."""
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
        weight = rng.normal(size=(self.inputs, self.outputs))
        shape = (self.rows, self.inputs)
        return single(node, {"w": weight, "b": rng.normal(size=self.outputs)}, shape), shape


Layer = Convolution | Product

NETWORKS: Mapping[str, Sequence[Layer]] = {
    "resnet50": (
        Convolution(3, 64, 224, 7, 2), Convolution(64, 64, 56), Convolution(64, 64, 56, 3),
        Convolution(64, 256, 56), Convolution(256, 64, 56), Convolution(256, 128, 56),
        Convolution(128, 128, 56, 3, 2), Convolution(128, 512, 28), Convolution(512, 128, 28),
        Convolution(128, 128, 28, 3), Convolution(256, 256, 14, 3), Convolution(256, 1024, 14),
        Convolution(1024, 256, 14), Convolution(512, 512, 7, 3), Convolution(512, 2048, 7),
        Convolution(2048, 512, 7), Product(1, 2048, 1000),
    ),
    "mobilenetv2": (
        Convolution(3, 32, 224, 3, 2), Convolution(32, 32, 112, 3, groups=32),
        Convolution(16, 96, 112), Convolution(96, 96, 112, 3, 2, 96), Convolution(96, 24, 56),
        Convolution(24, 144, 56), Convolution(144, 144, 56, 3, groups=144),
        Convolution(32, 192, 28), Convolution(192, 192, 28, 3, groups=192),
        Convolution(192, 32, 28), Convolution(64, 384, 14),
        Convolution(384, 384, 14, 3, groups=384),
        Convolution(384, 64, 14), Convolution(576, 96, 14), Convolution(160, 960, 7),
        Convolution(960, 960, 7, 3, groups=960), Convolution(960, 160, 7),
        Convolution(320, 1280, 7),
    ),
    "efficientnet_lite0": (
        Convolution(24, 144, 56), Convolution(144, 144, 56, 5, 2, 144), Convolution(144, 40, 28),
        Convolution(40, 240, 28), Convolution(240, 240, 28, 5, groups=240),
        Convolution(240, 80, 14), Convolution(480, 480, 14, 5, groups=480),
        Convolution(480, 112, 14), Convolution(672, 112, 14), Convolution(672, 672, 14, 5, 2, 672),
        Convolution(672, 192, 7), Convolution(192, 1152, 7),
        Convolution(1152, 1152, 7, 5, groups=1152), Convolution(1152, 192, 7),
        Convolution(320, 1280, 7), Product(1, 1280, 1000),
    ),
    "minilm": tuple(
        Product(rows, k, n)
        for rows in (16, 128)
        for k, n in ((384, 384), (384, 1536), (1536, 384))
    ),
}  # fmt: skip


def single(
    node: onnx.NodeProto, constants: Mapping[str, Array], shape: Sequence[int]
) -> onnx.ModelProto:
    """A model of one node with one input."""
    tensors = [numpy_helper.from_array(x.astype(np.float32), n) for n, x in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "layer", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def with_module(path: Path, x: Array) -> Callable[[], float]:
    """A function that runs the module and returns microseconds of its kernels."""
    module = runtime.load(path, threads=1)
    computes = np.asarray([not call.kernel.startswith(BOUNDARY) for call in module.calls])
    return lambda: float(np.asarray(module.profile({"x": x}))[computes].sum()) / 1e3


def with_onnxruntime(path: Path, x: Array) -> Callable[[], float]:
    """The same of a session, whose profile is read after every run."""

    def run() -> float:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling = True
        options.profile_file_prefix = str(path.with_suffix(""))
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        for _ in range(1 + REPEATS):
            session.run(None, {"x": x})
        trace = Path(session.end_profiling())
        events = json.loads(trace.read_text())
        trace.unlink()
        return least(events)

    return run


def least(events: Sequence[Mapping[str, Any]]) -> float:
    """Microseconds of the nodes that compute, in the quickest run after the first."""
    runs: dict[str, list[float]] = {}
    for event in events:
        name, op = event["name"], event.get("args", {}).get("op_name", "")
        if name.endswith("_kernel_time") and not op.startswith(BOUNDARY):
            runs.setdefault(name, []).append(float(event["dur"]))
    return float(np.sum([taken[1:] for taken in runs.values()], axis=0).min())


@dataclass(frozen=True)
class Peak:
    """Nothing but vpdpbusd: twelve sums in registers, each added to in turn."""

    isa: Isa
    turns: int = 1 << 16
    sums: int = 12

    def parameters(self) -> tuple[Parameter, ...]:
        """x: a quad; w: a vector of weights; y: the sums."""
        size = self.sums * self.isa.lanes
        return (
            Parameter("x", "int32", 1),
            Parameter("w", "int8", 4 * self.isa.lanes),
            Parameter("y", "int32", size),
        )

    def emit(self, on: Any, x: Any, w: Any, y: Any) -> None:
        """Every sum in turn."""
        lanes = self.isa.lanes
        acc = on.local("int32", self.sums * lanes)
        places = [span(number * lanes, lanes) for number in range(self.sums)]
        for at in places:
            T.buffer_store(acc, y[at], [at])
        with T.serial(0, self.turns):
            for at in places:
                total = self.isa.dots(acc[at], [x[0]], [w[span(0, 4 * lanes)]])
                T.buffer_store(acc, total, [at])
        for at in places:
            T.buffer_store(y, acc[at], [at])


def peak(target: str) -> float | None:
    """GMAC/s of vpdpbusd on registers, or None without it."""
    machine = Description.parse(target).resolved().target()
    isa = dot.choose(features_of(machine))
    if isa is None or "vnni" not in isa.name:
        return None
    kernel = Peak(isa)
    run = on_zeros(kernel, machine)
    taken = min(timeit.repeat(run, number=1, repeat=50))
    return kernel.turns * kernel.sums * isa.lanes * 4 / taken / 1e9


def measure(layer: Layer, rounds: int, target: str) -> dict[str, float]:
    """Median microseconds of both, and of their ratio."""
    rng = np.random.default_rng(0)
    model, shape = layer.model(rng)
    samples = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(4)]
    recipe = ptq.Recipe(effort="fast", bias_correction=False)
    with tempfile.TemporaryDirectory() as folder:
        result = ptq.quantize(model, samples, recipe)
        file, library = Path(folder) / "layer.onnx", Path(folder) / "layer.so"
        result.save(file)
        save_compiled(result, library, CompileOptions(target=target))
        ours, theirs = (
            with_module(library, samples[0]["x"]),
            with_onnxruntime(file, samples[0]["x"]),
        )
        ours()
        times = [(min(ours() for _ in range(REPEATS)), theirs()) for _ in range(rounds)]
    own, rival = np.asarray(times).T
    return {
        "module_us": float(np.median(own)),
        "onnxruntime_us": float(np.median(rival)),
        "ratio": float(np.median(rival / own)),
        "low": float(np.quantile(rival / own, 0.25)),
        "high": float(np.quantile(rival / own, 0.75)),
        "gmacs": layer.macs / float(np.median(own)) / 1e3,
    }


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print Markdown."""
    print("| network | layer | onnxruntime / module | quartiles | GMAC/s | of vpdpbusd |")
    print("|---|---|---|---|---|---|")
    for x in lines:
        spread = f"{x['low']:.2f} to {x['high']:.2f}"
        share = f"{x['gmacs'] / x['peak']:.0%}" if x.get("peak") else ""
        cells = x["network"], x["layer"], f"{x['ratio']:.2f}", spread, f"{x['gmacs']:.0f}", share
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--target", default="llvm:native")
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    options = parser.parse_args()
    known = options.out.read_text().splitlines() if options.out.exists() else []
    lines = [json.loads(line) for line in known]
    if options.table:
        table(lines)
        return
    most = peak(options.target)
    done = {(line["network"], line["layer"]) for line in lines}
    for network in options.network or NETWORKS:
        for layer in NETWORKS[network]:
            if (network, str(layer)) in done:
                continue
            figures = measure(layer, options.rounds, options.target)
            line = {"network": network, "layer": str(layer), **figures, "peak": most}
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
