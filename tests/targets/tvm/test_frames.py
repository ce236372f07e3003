"""Tensors with a frame for the next convolution: which, and that every reader finds its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")

from ptq import runtime
from ptq.integer.program import Program
from ptq.integer.reference import Reference
from ptq.pipeline import quantize
from ptq.recipe import Recipe
from ptq.targets.tvm.frames import DENSE_ROWS, Frame, frames
from ptq.targets.tvm.layout import channels_last
from ptq.targets.tvm.module import CompileOptions, compile_program
from ptq.targets.tvm.trace import trace
from tests.graphs import GraphBuilder, Shape, Tensor
from tests.kernels.test_fast_kernels import needs_avx2
from tests.many_convolutions import many_program
from tests.passes.small_graphs import draw, graph
from tests.targets.tvm.test_module import assert_same_codes

RECIPE = Recipe.preset("w8a8").replace(effort="fast", rounding="nearest", bias_correction=False)
STEPS = 9


def mixed_graph(seed: int) -> tuple[onnx.ModelProto, Shape]:
    """Convolutions of all paddings, sums, pools, tables, joins and means that share tensors."""
    b = GraphBuilder(np.random.default_rng(seed))
    shape = (3, int(b.rng.integers(8, 20)), int(b.rng.integers(8, 20)))
    tensors: list[Tensor] = [_convolution(b, ("x", shape))]
    for _ in range(STEPS):
        step = STEP_KINDS[b.rng.integers(len(STEP_KINDS))]
        recent = tensors[-min(len(tensors), int(b.rng.integers(1, 4)))]
        tensors.append(step(b, recent))
    used = {name for node in b.nodes for name in node.input}
    ends = [tensor for tensor in dict.fromkeys(tensors) if tensor[0] not in used]
    means = [b.node("Flatten", [b.node("GlobalAveragePool", [name])]) for name, _ in ends]
    joined = b.node("Concat", means, axis=1) if len(means) > 1 else means[0]
    width = sum(shape[0] for _, shape in ends)
    y = b.node("Gemm", [joined, b.weight(5, width), b.bias(5)], transB=1)
    return b.model({"x": shape}, {y: (5,)}), shape


def _convolution(b: GraphBuilder, tensor: Tensor) -> Tensor:
    """Any window, padding, stride, dilation and grouping; a third are of single pixels."""
    name, (channels, *sizes) = tensor
    single = b.rng.random() < 0.3
    window, strides, dilations = (
        [1, 1] if single else [int(n) for n in b.rng.integers(1, top, 2)] for top in (5, 3, 3)
    )
    pads = [0 if single else int(n) for n in b.rng.integers(0, 3, 4)]
    group = channels if b.rng.random() < 0.3 else 1
    out = channels if group > 1 else int(b.rng.choice([8, 10, 16, 24]))
    after = [
        (size + pads[i] + pads[i + 2] - (window[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]
    if min(after) < 2:
        return tensor
    y = b.node(
        "Conv", [name, b.weight(out, channels // group, *window), b.bias(out)],
        pads=pads, strides=strides, dilations=dilations, group=group,
    )  # fmt: skip
    y = b.node("Relu", [y]) if b.rng.random() < 0.6 else y
    return y, (out, *after)


def _sum(b: GraphBuilder, tensor: Tensor) -> Tensor:
    """A residual: x + convolution of it."""
    name, shape = tensor
    weight = b.weight(shape[0], shape[0], 3, 3)
    y = b.node("Conv", [name, weight, b.bias(shape[0])], pads=[1, 1, 1, 1])
    return b.node("Add", [name, y]), shape


def _gated(b: GraphBuilder, tensor: Tensor) -> Tensor:
    """x * sigmoid(mean of x)."""
    name, shape = tensor
    gate = b.node("Sigmoid", [b.node("GlobalAveragePool", [name])])
    return b.node("Mul", [name, gate]), shape


def _table(b: GraphBuilder, tensor: Tensor) -> Tensor:
    return b.node("Tanh", [tensor[0]]), tensor[1]


def _pool(b: GraphBuilder, tensor: Tensor) -> Tensor:
    name, (channels, *sizes) = tensor
    y = b.node("MaxPool", [name], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 2])
    return y, (channels, sizes[0], (sizes[1] - 1) // 2 + 1)


def _join(b: GraphBuilder, tensor: Tensor) -> Tensor:
    """Beside what two windows of different sizes make of it, as Inception has it."""
    name, (channels, *sizes) = tensor
    parts = [name]
    for size in (1, 3, 5):
        weight = b.weight(8, channels, size, size)
        parts.append(b.node("Conv", [name, weight, b.bias(8)], pads=[size // 2] * 4))
    return b.node("Concat", parts, axis=1), (channels + 24, *sizes)


def _softmax(b: GraphBuilder, tensor: Tensor) -> Tensor:
    return b.node("Softmax", [tensor[0]], axis=1), tensor[1]


STEP_KINDS: list[Any] = [
    _convolution, _convolution, _convolution, _sum, _gated, _table, _pool, _join, _softmax,
]  # fmt: skip


def mixed_program(seed: int) -> tuple[Program, dict[str, Any]]:
    """It, quantised, and a batch for it."""
    proto, shape = mixed_graph(seed)
    return quantize(proto, [{"x": draw(8, *shape)}], RECIPE).program, {"x": draw(3, *shape, seed=1)}


def framed(program: Program) -> dict[str, Frame]:
    shapes = trace(program).codes
    last = channels_last(program, {name: len(shape) for name, shape in shapes.items()})
    return frames(program, shapes, last)


@pytest.mark.parametrize("seed", range(4))
def test_mixed_readers_find_equal_codes(seed: int, tmp_path: Path) -> None:
    program, feeds = mixed_program(seed)
    assert len(framed(program)) > 1
    assert_same_codes(program, feeds, tmp_path)


@needs_avx2
@pytest.mark.parametrize(("seed", "batch"), [(4, None), (5, 3)])
def test_mixed_readers_find_equal_codes_on_avx2(
    seed: int, batch: int | None, tmp_path: Path
) -> None:
    program, feeds = mixed_program(seed)
    assert_same_codes(program, feeds, tmp_path, target="llvm:x86-64-v3", batch=batch)


@needs_avx2
def test_frames_are_whole_in_memory_that_other_tensors_had(tmp_path: Path) -> None:
    program, feeds = mixed_program(6)
    compile_program(program, CompileOptions()).export(tmp_path / "m.so")
    module = runtime.load(tmp_path / "m.so")
    wanted = Reference(program).run(feeds)
    for _ in range(2):
        for name, array in module.run(feeds).items():
            np.testing.assert_array_equal(array, wanted[name])


def small_program(text: str, shape: Shape, **weights: Any) -> Program:
    model = graph(text, weights)
    return quantize(model, [{"x": draw(8, *shape)}], RECIPE).program


TWO_WINDOWS = """(float[N, 4, 16, W] x) => (float[N, 8, 16, W] y) {
    t = Tanh(x)
    a = Conv<pads = [1, 2, 1, 0]>(t, narrow)
    b = Conv<pads = [0, 1, 2, 1]>(t, narrow)
    c = Conv(t, single)
    d = Add(a, b)
    y = Add(d, c)
}"""


@pytest.mark.parametrize("width", [DENSE_ROWS, DENSE_ROWS - 1])
def test_a_frame_is_as_large_as_all_readers_need_and_rows_are_long(width: int) -> None:
    """Short rows stay dense for the product of single pixels."""
    weights = {"narrow": draw(8, 4, 3, 3), "single": draw(8, 4, 1, 1)}
    program = small_program(TWO_WINDOWS.replace("W", str(width)), (4, 16, width), **weights)
    wanted = {"t": Frame(1, 2, 2, 1)} if width == DENSE_ROWS else {}
    assert framed(program) == wanted


@needs_avx2
def test_no_convolution_copies_its_input() -> None:
    """Only the readers of two other tensors: one that a product has made, and short rows."""
    made = compile_program(many_program(), CompileOptions())
    names = [kernel for kernels in made.kernels.values() for kernel in kernels]
    assert "Fill" not in names
    assert names.count("Copy") == 1  # Flatten
    assert names.count("Border") == len(framed(many_program())) > 3


@needs_avx2
@pytest.mark.parametrize("pad", [0, 1])
def test_convolution_reads_a_product_whose_order_is_another(pad: int, tmp_path: Path) -> None:
    text = f"""(float[N, 6, 10] x) => (float[N, 4, {8 + 2 * pad}] y) {{
        t = Transpose<perm = [0, 2, 1]>(x)
        p = MatMul(x, t)
        q = MatMul(p, x)
        y = Conv<pads = [{pad}, {pad}]>(q, w)
    }}"""
    program = small_program(text, (6, 10), w=draw(4, 6, 3))
    assert_same_codes(program, {"x": draw(2, 6, 10, seed=1)}, tmp_path, batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 40))
def test_more_mixed_readers_find_equal_codes(seed: int, tmp_path: Path) -> None:
    program, feeds = mixed_program(seed)
    target = ("llvm:native", "llvm:x86-64-v3")[seed % 2]
    assert_same_codes(program, feeds, tmp_path, target=target)
