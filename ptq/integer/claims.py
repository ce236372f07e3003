"""Which float operators have an integer form: a table of small functions, one an operator.

A function looks at one node and returns the kind of integer step that it can become, or a
`Refusal` with the reason and the remedy. It decides nothing about numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


@dataclass(frozen=True)
class Refusal:
    """Why a node has no integer form, and what would give it one."""

    reason: str


Claim = str | Refusal
Rule = Callable[[ir.Node], Claim]

# Kinds: conv, gemm, matmul, add, multiply, mean, window, softmax, concat, move, order, elementwise,
# test and piecewise (a comparison that only Where reads, and such a Where: a table of one tensor),
# shape (reads only the shape). `raw` (no float operand, or joined results): see claim_nodes.


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a constant value, else None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def is_activation(value: ir.Value | None) -> bool:
    """True for a float tensor that is not constant."""
    return value is not None and value.const_value is None and value.dtype == ir.DataType.FLOAT


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions if known."""
    return None if value is None or value.shape is None else len(value.shape)


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    """The size along `axis` if it is known and fixed."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def integers(node: ir.Node, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """An INTS attribute, or the default."""
    attr = node.attributes.get(name)
    return default if attr is None else tuple(attr.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute, or the default."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def real(node: ir.Node, name: str, default: float) -> float:
    """A FLOAT attribute, or the default."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_float()


def text(node: ir.Node, name: str, default: str) -> str:
    """A STRING attribute, or the default."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_string()


def channel_axis(value: ir.Value | None) -> int | None:
    """The one axis, counted from the end, along which a constant varies.

    0 for a scalar-like constant; None if it varies along several axes.
    """
    array = constant(value)
    if array is None:
        return None
    axes = [a - array.ndim for a, size in enumerate(array.shape) if size != 1]
    return 0 if not axes else axes[0] if len(axes) == 1 else None


def _conv(node: ir.Node) -> Claim:
    if constant(node.inputs[1]) is None:
        return Refusal("its weight is computed at run time; only constant weights are quantised")
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is None:
        return Refusal("its bias is computed at run time")
    if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return Refusal("auto_pad depends on the input's size: give explicit pads")
    return "conv"


def _gemm(node: ir.Node) -> Claim:
    if constant(node.inputs[1]) is None or integer(node, "transA", 0):
        return Refusal("its second operand is not constant, or transA is set: write it as MatMul")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (constant(bias) is None or channel_axis(bias) not in (0, -1)):
        return Refusal("its bias is not a constant row")
    return "gemm"


def _matmul(node: ir.Node) -> Claim:
    a, b = node.inputs
    if is_activation(a) and is_activation(b):
        if 1 in (rank(a), rank(b)):
            return Refusal("it multiplies a vector: reshape it to a matrix")
        return "matmul"
    array = constant(b)
    if array is not None and array.ndim == 2 and array.dtype == np.float32:
        return "gemm"
    return "matmul" if array is not None or constant(a) is not None else Refusal("not float32")


def _binary(kind: str) -> Rule:
    def rule(node: ir.Node) -> Claim:
        first, second = node.inputs[:2]
        if is_activation(first) and is_activation(second):
            return kind
        return "elementwise" if _table_refusal(node) is None else kind

    return rule


def _table_refusal(node: ir.Node) -> Refusal | None:
    """Why a node of one activation and constants is not a table of it, a channel at a time."""
    source = next((v for v in node.inputs if is_activation(v)), None)
    size = rank(source)
    if size is None:
        return Refusal("the rank of its input is not known")
    axes: set[int] = set()
    for value in node.inputs:
        array = constant(value)
        if array is None:
            continue
        axis = channel_axis(value)
        if axis is None or array.ndim > size:
            return Refusal("its constant varies along several axes, or adds one")
        if axis and static_dim(source, axis) != array.shape[axis]:
            return Refusal("its constant broadcasts its input")
        axes.add(axis)
    axes.discard(0)
    if len(axes) > 1:
        return Refusal("its constants vary along several axes")
    if -size in axes:
        return Refusal("its constant varies along the batch axis")
    return None


def _with_constant(node: ir.Node) -> Claim:
    """Elementwise if every operand but one is a constant scalar or channel vector."""
    if len({id(v) for v in node.inputs if is_activation(v)}) != 1:
        return Refusal("it combines two computed tensors and has no integer form")
    return _table_refusal(node) or "elementwise"


def _comparison(node: ir.Node) -> Claim:
    """With a constant, for choosing between functions of the same tensor."""
    output = node.outputs[0]
    users = list(output.uses())
    chooses = all(use.node.op_type == "Where" and use.idx == 0 for use in users)
    if not users or not chooses or output.is_graph_output():
        return Refusal("its result is more than the condition of a Where")
    claim = _with_constant(node)
    return "test" if claim == "elementwise" else claim


def _where(node: ir.Node) -> Claim:
    condition, *choices = node.inputs
    test = None if condition is None else condition.producer()
    if test is None or test.op_type not in COMPARISONS or _comparison(test) != "test":
        return Refusal("it has no integer form but as the mask of a softmax")
    if any(constant(v) is None and not is_activation(v) for v in choices):
        return Refusal("it chooses between tensors that are not float32")
    return _table_refusal(node) or "piecewise"


def _divide(node: ir.Node) -> Claim:
    if constant(node.inputs[1]) is None and is_activation(node.inputs[0]):
        return Refusal("it divides two computed tensors")
    return _with_constant(node)


def _average_pool(node: ir.Node) -> Claim:
    source = node.inputs[0]
    if source is None or static_dim(source, 1) is None:
        return Refusal("its number of channels is not known")
    pads, kernel = integers(node, "pads"), integers(node, "kernel_shape")
    if not any(pads) and kernel == tuple(static_dim(source, i + 2) for i in range(len(kernel))):
        return "mean"
    if any(pads) and not integer(node, "count_include_pad", 0):
        return Refusal("padded windows have other divisors: give it a static spatial size")
    if integer(node, "ceil_mode", 0) and not _pool_divides(node):
        return Refusal("ceil_mode cuts windows at the border: give it a static spatial size")
    if any(d != 1 for d in integers(node, "dilations")):
        return Refusal("dilated average pooling has no integer form here")
    if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return Refusal("auto_pad depends on the input's size: give explicit pads")
    return "window"


def _pool_divides(node: ir.Node) -> bool:
    """True if floor and ceil output sizes are the same."""
    kernel, source = integers(node, "kernel_shape"), node.inputs[0]
    n = len(kernel)
    pads, strides = (
        integers(node, "pads", (0,) * 2 * n),
        integers(node, "strides", (1,) * n),
    )
    sizes = [None if source is None else static_dim(source, i + 2) for i in range(n)]
    return all(
        size is not None and (size + pads[i] + pads[i + n] - kernel[i]) % strides[i] == 0
        for i, size in enumerate(sizes)
    )


def _mean(node: ir.Node) -> Claim:
    source = node.inputs[0]
    axes = reduced_axes(node)
    if source is None or axes is None:
        return Refusal("its axes are not constant")
    if not axes:
        return Refusal("it reduces nothing")
    if any(static_dim(source, a) is None for a in axes):
        return Refusal("the size of a reduced axis is not static: give --input-shape")
    return "mean"


def _extreme(node: ir.Node) -> Claim:
    """Codes are ordered like their values, so the largest code is that of the largest value."""
    return "move" if reduced_axes(node) else Refusal("its axes are not constant, or none")


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Non-negative reduced axes of a mean, a sum or an extreme; all spatial axes for pooling."""
    size = rank(node.inputs[0])
    if size is None:
        return None
    if node.op_type in ("GlobalAveragePool", "AveragePool"):
        return tuple(range(2, size))
    if "axes" in node.attributes:
        axes = integers(node, "axes")
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        if array is None:
            return None
        axes = tuple(int(a) for a in array.reshape(-1))
    else:
        axes = () if integer(node, "noop_with_empty_axes", 0) else tuple(range(size))
    return tuple(sorted(a % size for a in axes))


def _softmax(node: ir.Node) -> Claim:
    source = node.inputs[0]
    size = None if source is None else static_dim(source, integer(node, "axis", -1))
    if size is not None and size >= 2**15:
        return Refusal("softmax over 32768 or more elements overflows int32")
    return "softmax"


def _resize(node: ir.Node) -> Claim:
    if text(node, "mode", "nearest") != "nearest":
        return Refusal("an interpolating resize needs static sizes: give --input-shape")
    return "move"


def _pad(node: ir.Node) -> Claim:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None and constant(value) is None:
        return Refusal("its padding value is computed at run time")
    return "move"


def _concat(node: ir.Node) -> Claim:
    if any(v is None or v.dtype != ir.DataType.FLOAT for v in node.inputs):
        return Refusal("it joins tensors that are not float32")
    return "concat"


def is_table(value: ir.Value | None) -> bool:
    """True for constant float32 numbers."""
    array = constant(value)
    return array is not None and array.dtype == np.float32


def _maxpool(node: ir.Node) -> Claim:
    if len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].uses():
        return Refusal("its Indices output is used")
    return "move"


def _always(kind: str) -> Rule:
    return lambda node: kind


UNARY = [
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Gelu",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Neg",
    "Abs",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "Softsign",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Mish",
    "ThresholdedRelu",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Swish",
    "QuickGelu",
    "FastGelu",
    "Shrink",
]
COMPARISONS = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
MOVES = [
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Identity",
    "GatherElements",
    "GatherND",
    "ReverseSequence",
]

SPREADS = ("Gather", "Expand", "Slice", "Tile")
"""Move constants too: rows of an embedding, a class token for every sample,
rotary angles so far."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _always("elementwise")),
    **dict.fromkeys(MOVES, _always("move")),
    **dict.fromkeys(("Clip", "PRelu", "Pow", "Min", "Max"), _with_constant),
    **dict.fromkeys(("Shape", "Size"), _always("shape")),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), _mean),
    "Add": _binary("add"),
    "Sub": _binary("add"),
    "Mul": _binary("multiply"),
    "Div": _divide,
    **dict.fromkeys(COMPARISONS, _comparison),
    "Where": _where,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "AveragePool": _average_pool,
    "MaxPool": _maxpool,
    "GlobalMaxPool": _always("move"),
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "Softmax": _softmax,
    "Resize": _resize,
    "Pad": _pad,
    "Concat": _concat,
    "Gather": _always("move"),
    "ArgMax": _always("order"),
    "ArgMin": _always("order"),
}
