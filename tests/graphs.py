"""Random float graphs from the supported operators: branches, adds, concats, odd shapes.

`random_graph(seed)` is deterministic. The batch is dynamic. Channels and sizes are small and odd.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 21


@dataclass
class GraphBuilder:
    """Collects nodes; tensors are (name, shape without the batch)."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def constant(self, array: Any, name: str = "c") -> str:
        """Add an initializer."""
        self.count += 1
        name = f"{name}{self.count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        self.count += 1
        output = f"{op_type.lower()}{self.count}"
        self.nodes.append(
            helper.make_node(
                op_type, inputs, [output], name=f"{op_type}_{self.count}", **attributes
            )
        )
        return output

    def weight(self, *shape: int) -> str:
        """A weight with some spread between channels."""
        w = self.rng.normal(size=shape) * self.rng.uniform(
            0.2, 2.0, (shape[0], *[1] * (len(shape) - 1))
        )
        return self.constant((w / np.sqrt(np.prod(shape[1:]))).astype(np.float32), "w")

    def bias(self, size: int) -> str:
        """A bias."""
        return self.constant((0.3 * self.rng.normal(size=size)).astype(np.float32), "b")

    def model(
        self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
    ) -> onnx.ModelProto:
        """The finished model with a dynamic batch."""
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", *s])
                for n, s in inputs.items()
            ],
            [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", *s])
                for n, s in outputs.items()
            ],
            self.initializers,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )


Shape = tuple[int, ...]
Tensor = tuple[str, Shape]


def _conv(b: GraphBuilder, x: Tensor) -> Tensor:
    name, shape = x
    c, spatial = shape[0], shape[1:]
    divisors = [g for g in range(1, c + 1) if c % g == 0]
    groups = int(b.rng.choice(divisors))
    out = groups * int(b.rng.integers(1, 4))
    kernel, strides, dilations, pads, size = [], [], [], [], []
    for s in spatial:
        k = int(b.rng.integers(1, min(3, s) + 1))
        d = int(b.rng.integers(1, 3)) if (k - 1) * 2 + 1 <= s else 1
        t = int(b.rng.integers(1, 3))
        p = [int(v) for v in b.rng.integers(0, 2, 2)]
        kernel.append(k)
        dilations.append(d)
        strides.append(t)
        pads.append(p)
        size.append((s + sum(p) - (k - 1) * d - 1) // t + 1)
    inputs = [name, b.weight(out, c // groups, *kernel)]
    if b.rng.random() < 0.7:
        inputs.append(b.bias(out))
    flat = [p[0] for p in pads] + [p[1] for p in pads]
    y = b.node(
        "Conv", inputs, group=groups, strides=strides, dilations=dilations, pads=flat,
        kernel_shape=kernel,
    )  # fmt: skip
    return y, (out, *size)


def _conv_transpose(b: GraphBuilder, x: Tensor) -> Tensor:
    name, shape = x
    if len(shape) != 3:
        return _conv(b, x)
    out, k, t = int(b.rng.integers(1, 4)), int(b.rng.integers(1, 4)), int(b.rng.integers(1, 3))
    w = b.constant((b.rng.normal(size=(shape[0], out, k, k)) * 0.3).astype(np.float32), "w")
    y = b.node("ConvTranspose", [name, w, b.bias(out)], strides=[t, t], kernel_shape=[k, k])
    return y, (out, *((s - 1) * t + k for s in shape[1:]))


ACTIVATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Sigmoid", {}), ("HardSigmoid", {}),
    ("HardSwish", {}), ("Tanh", {}), ("Gelu", {}), ("Erf", {}), ("Softplus", {}), ("Elu", {}),
)  # fmt: skip


def _activation(b: GraphBuilder, x: Tensor) -> Tensor:
    op, attributes = ACTIVATIONS[int(b.rng.integers(len(ACTIVATIONS)))]
    return b.node(op, [x[0]], **attributes), x[1]


def _clip(b: GraphBuilder, x: Tensor) -> Tensor:
    low, high = sorted(b.rng.normal(size=2) * 2)
    ends = [b.constant(np.float32(v)) for v in (min(low, -0.1), max(high, 0.1))]
    return b.node("Clip", [x[0], *ends]), x[1]


def _silu(b: GraphBuilder, x: Tensor) -> Tensor:
    return b.node("Mul", [x[0], b.node("Sigmoid", [x[0]])]), x[1]


def _prelu(b: GraphBuilder, x: Tensor) -> Tensor:
    shape = (x[1][0], *[1] * (len(x[1]) - 1))
    slope = b.constant(b.rng.uniform(0, 0.5, shape).astype(np.float32))
    return b.node("PRelu", [x[0], slope]), x[1]


def _exp(b: GraphBuilder, x: Tensor) -> Tensor:
    half = b.constant(np.float32(0.5))
    return b.node("Exp", [b.node("Mul", [b.node("Tanh", [x[0]]), half])]), x[1]


def _residual(b: GraphBuilder, x: Tensor) -> Tensor:
    c, spatial = x[1][0], x[1][1:]
    w = b.weight(c, c, *[1] * len(spatial))
    branch = b.node("Conv", [x[0], w, b.bias(c)], kernel_shape=[1] * len(spatial))
    op = str(b.rng.choice(["Add", "Sub", "Mul"]))
    pair = [x[0], branch] if b.rng.random() < 0.5 else [branch, x[0]]
    return b.node(op, pair), x[1]


def _constant_operand(b: GraphBuilder, x: Tensor) -> Tensor:
    op = str(b.rng.choice(["Add", "Mul", "Sub"]))
    array = b.rng.normal(size=(1, *x[1])).astype(np.float32)
    return b.node(op, [x[0], b.constant(array)]), x[1]


def _concat(b: GraphBuilder, x: Tensor) -> Tensor:
    other = _activation(b, x)
    return b.node("Concat", [x[0], other[0]], axis=1), (2 * x[1][0], *x[1][1:])


def _split(b: GraphBuilder, x: Tensor) -> Tensor:
    c = x[1][0]
    if c < 2:
        return x
    b.count += 1
    names = [f"split{b.count}a", f"split{b.count}b"]
    sizes = b.constant(np.array([1, c - 1], np.int64))
    b.nodes.append(helper.make_node("Split", [x[0], sizes], names, axis=1, name=f"Split_{b.count}"))
    return b.node("Concat", names[::-1], axis=1), x[1]


def _pool(b: GraphBuilder, x: Tensor) -> Tensor:
    spatial = x[1][1:]
    if min(spatial) < 2:
        return x
    kernel, strides = [2] * len(spatial), [int(b.rng.integers(1, 3)) for _ in spatial]
    size = [(s - 2) // t + 1 for s, t in zip(spatial, strides, strict=True)]
    op = str(b.rng.choice(["MaxPool", "AveragePool"]))
    return b.node(op, [x[0]], kernel_shape=kernel, strides=strides), (x[1][0], *size)


def _max_pool_padded(b: GraphBuilder, x: Tensor) -> Tensor:
    spatial = x[1][1:]
    n = len(spatial)
    y = b.node("MaxPool", [x[0]], kernel_shape=[3] * n, strides=[1] * n, pads=[1] * 2 * n)
    return y, x[1]


def _pad(b: GraphBuilder, x: Tensor) -> Tensor:
    n = len(x[1]) + 1
    pads = np.zeros(2 * n, np.int64)
    pads[n - 1], pads[-1] = 1, 2
    return b.node("Pad", [x[0], b.constant(pads)]), (*x[1][:-1], x[1][-1] + 3)


def _slice(b: GraphBuilder, x: Tensor) -> Tensor:
    size = x[1][-1]
    if size < 3:
        return x
    parts = [b.constant(np.array([v], np.int64)) for v in (1, size, len(x[1]))]
    return b.node("Slice", [x[0], *parts]), (*x[1][:-1], size - 1)


def _transpose(b: GraphBuilder, x: Tensor) -> Tensor:
    n = len(x[1])
    if n < 3:
        return x
    perm = [0, 1, *range(n, 1, -1)]
    return b.node("Transpose", [x[0]], perm=perm), (x[1][0], *x[1][:0:-1])


def _resize(b: GraphBuilder, x: Tensor) -> Tensor:
    if len(x[1]) != 3:
        return x
    mode = str(b.rng.choice(["nearest", "linear"]))
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    y = b.node(
        "Resize", [x[0], "", scales], mode=mode, coordinate_transformation_mode="asymmetric",
        **({"nearest_mode": "floor"} if mode == "nearest" else {}),
    )  # fmt: skip
    return y, (x[1][0], 2 * x[1][1], 2 * x[1][2])


def _depth_to_space(b: GraphBuilder, x: Tensor) -> Tensor:
    if len(x[1]) != 3 or x[1][0] % 4:
        return x
    y = b.node("DepthToSpace", [x[0]], blocksize=2, mode=str(b.rng.choice(["DCR", "CRD"])))
    return y, (x[1][0] // 4, 2 * x[1][1], 2 * x[1][2])


def _expand_tile(b: GraphBuilder, x: Tensor) -> Tensor:
    n = len(x[1]) + 1
    repeats = np.ones(n, np.int64)
    repeats[1] = 2
    return b.node("Tile", [x[0], b.constant(repeats)]), (2 * x[1][0], *x[1][1:])


def _unsqueeze_squeeze(b: GraphBuilder, x: Tensor) -> Tensor:
    axes = b.constant(np.array([1], np.int64))
    return b.node("Squeeze", [b.node("Unsqueeze", [x[0], axes]), axes]), x[1]


def _gather(b: GraphBuilder, x: Tensor) -> Tensor:
    index = b.rng.integers(0, x[1][0], 3)
    return b.node("Gather", [x[0], b.constant(index)], axis=1), (3, *x[1][1:])


def _matmul_last(b: GraphBuilder, x: Tensor) -> Tensor:
    k, n = x[1][-1], int(b.rng.integers(1, 6))
    w = b.constant((b.rng.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32), "w")
    y = b.node("MatMul", [x[0], w])
    if b.rng.random() < 0.5:
        y = b.node("Add", [y, b.bias(n)])
    return y, (*x[1][:-1], n)


def _self_attention(b: GraphBuilder, x: Tensor) -> Tensor:
    n = len(x[1])
    perm = [*range(n - 1), n, n - 1]
    scores = b.node("MatMul", [x[0], b.node("Transpose", [x[0]], perm=perm)])
    scale = b.constant(np.float32(1 / np.sqrt(x[1][-1])))
    weights = b.node("Softmax", [b.node("Mul", [scores, scale])], axis=-1)
    return b.node("MatMul", [weights, x[0]]), x[1]


def _norm(b: GraphBuilder, x: Tensor) -> Tensor:
    """Layer norm as one operator, or it and RMS norm as exporters write them."""
    n = x[1][-1]
    scale = b.constant(b.rng.normal(1, 0.3, n).astype(np.float32))
    if b.rng.random() < 0.3:
        return b.node("LayerNormalization", [x[0], scale, b.bias(n)], epsilon=1e-3), x[1]
    centred, axis = x[0], b.constant(np.array([-1], np.int64))
    if b.rng.random() < 0.5:
        centred = b.node("Sub", [x[0], b.node("ReduceMean", [x[0], axis])])
    two = b.constant(np.float32(2))
    power = b.rng.random() < 0.5
    square = b.node("Pow", [centred, two]) if power else b.node("Mul", [centred, centred])
    variance = b.node("ReduceMean", [square, axis])
    root = b.node("Sqrt", [b.node("Add", [variance, b.constant(np.float32(1e-3))])])
    y = b.node("Mul", [scale, b.node("Div", [centred, root])])
    return (b.node("Add", [y, b.bias(n)]) if b.rng.random() < 0.5 else y), x[1]


def _masked_softmax(b: GraphBuilder, x: Tensor) -> Tensor:
    """Softmax under a constant mask that keeps at least the diagonal of the last two axes."""
    shape = x[1][-2:] if len(x[1]) > 1 else (1, x[1][-1])
    keep = (b.rng.random(shape) < 0.6) | np.eye(*shape, dtype=bool)
    mask = np.where(keep, 0, -np.inf if b.rng.random() < 0.5 else -3e38).astype(np.float32)
    mask = mask.reshape([1] * (len(x[1]) + 1 - 2) + list(shape))
    return b.node("Softmax", [b.node("Add", [x[0], b.constant(mask)])], axis=-1), x[1]


def _reduce_mean(b: GraphBuilder, x: Tensor) -> Tensor:
    axes = b.constant(np.array([len(x[1])], np.int64))
    return b.node("ReduceMean", [x[0], axes], keepdims=1), (*x[1][:-1], 1)


BLOCKS = (
    _conv, _conv, _conv, _conv_transpose, _activation, _activation, _clip, _silu, _prelu, _exp,
    _residual, _residual, _constant_operand, _concat, _split, _pool, _max_pool_padded, _pad, _slice,
    _transpose, _resize, _depth_to_space, _expand_tile, _unsqueeze_squeeze, _gather, _matmul_last,
    _self_attention, _reduce_mean, _norm, _norm, _masked_softmax,
)  # fmt: skip


def random_graph(seed: int) -> tuple[onnx.ModelProto, dict[str, Shape]]:
    """A random model and its inputs' shapes (without the batch)."""
    b = GraphBuilder(np.random.default_rng(seed))
    spatial = 1 if b.rng.random() < 0.2 else 2
    shape = tuple(int(v) for v in (b.rng.integers(1, 6), *b.rng.integers(4, 9, spatial)))
    x: Tensor = ("input", shape)
    for _ in range(int(b.rng.integers(2, 8))):
        following = BLOCKS[int(b.rng.integers(len(BLOCKS)))](b, x)
        if np.prod(following[1]) <= 4096:
            x = following
    outputs = dict([x])
    if len(x[1]) > 1 and b.rng.random() < 0.6:
        head = b.node("Flatten", [b.node("GlobalAveragePool", [x[0]])])
        w = b.weight(5, x[1][0])
        outputs = {b.node("Gemm", [head, w, b.bias(5)], transB=1): (5,)}
    if "input" in outputs:
        outputs = {b.node("Relu", ["input"]): shape}
    return b.model({"input": shape}, outputs), {"input": shape}
