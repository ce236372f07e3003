"""What Apply steps compute: data movement on codes, shape arithmetic, and float islands.

Movement and shapes run in ONNX's own reference evaluator, and what is slow or wrong there in numpy;
float islands in onnxruntime, because they are float wherever they run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ptq.integer.program import Apply
from ptq.single_node import run_node

Array = npt.NDArray[Any]


def apply(
    step: Apply,
    operands: Sequence[Array | None],
    opset: int,
    scope: Mapping[str, Array],
) -> list[Array]:
    """Outputs of one node. `scope` holds the outer values that a node's bodies may capture."""
    if step.island is None and step.op_type in FAST:
        return FAST[step.op_type](step, operands, opset)
    if step.island is None:
        return _evaluate(step, operands, opset)
    return _run_float(step, operands, opset, scope)


def _node(step: Apply) -> onnx.NodeProto:
    node = onnx.helper.make_node(
        step.op_type,
        [ref.name if ref else "" for ref in step.inputs],
        [ref.name for ref in step.outputs],
        domain=step.domain,
    )
    node.attribute.extend(ir.to_proto(attr) for attr in step.attributes)
    return node


@functools.lru_cache(maxsize=4096)
def _evaluator(node: bytes, opset: int) -> Any:
    from onnx.reference import ReferenceEvaluator

    proto = onnx.NodeProto.FromString(node)
    return ReferenceEvaluator(proto, opsets={"": opset})


def _evaluate(step: Apply, operands: Sequence[Array | None], opset: int) -> list[Array]:
    feeds = {
        ref.name: array
        for ref, array in zip(step.inputs, operands, strict=True)
        if ref is not None and array is not None
    }
    evaluator = _evaluator(_node(step).SerializeToString(), opset)
    return [np.asarray(result) for result in evaluator.run(None, feeds)]


def _run_float(
    step: Apply,
    operands: Sequence[Array | None],
    opset: int,
    scope: Mapping[str, Array],
) -> list[Array]:
    node = _node(step)
    feeds = {
        ref.name: array
        for ref, array in zip(step.inputs, operands, strict=True)
        if ref is not None and array is not None
    }
    captured = {name for attr in node.attribute for name in _captured(attr)}
    feeds |= {name: scope[name] for name in captured if name in scope}
    return run_node(node, feeds, opset)


def _captured(attr: onnx.AttributeProto) -> set[str]:
    names: set[str] = set()
    for graph in (attr.g, *attr.graphs):
        for node in graph.node:
            names |= set(node.input)
            for inner in node.attribute:
                names |= _captured(inner)
        names |= {output.name for output in graph.output}
    return names


def _attributes(step: Apply) -> dict[str, Any]:
    return {attr.name: attr.value for attr in step.attributes}


def _max_pool(step: Apply, operands: Sequence[Array | None], opset: int) -> list[Array]:
    """Max pooling of codes: padding never wins, because codes are unsigned."""
    (x,) = operands
    assert x is not None
    options = _attributes(step)
    kernel = tuple(options["kernel_shape"])
    n = len(kernel)
    strides = tuple(options.get("strides", (1,) * n))
    dilations = tuple(options.get("dilations", (1,) * n))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pool_pads(options, x.shape[2:], extent, strides)
    ceil = options.get("ceil_mode", 0)
    sizes, full = [], [(0, 0), (0, 0)]
    for i in range(n):
        room = x.shape[2 + i] + pads[i] + pads[i + n] - extent[i]
        size = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        if ceil and (size - 1) * strides[i] >= x.shape[2 + i] + pads[i]:
            size -= 1  # a window that would start in the end padding is dropped
        sizes.append(size)
        after = max((size - 1) * strides[i] + extent[i] - x.shape[2 + i] - pads[i], 0)
        full.append((pads[i], after))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, full), extent, axis=tuple(range(2, 2 + n))
    )
    picked = [slice(0, (s - 1) * t + 1, t) for s, t in zip(sizes, strides, strict=True)]
    inner = [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *picked, *inner)]
    return [windows.max(axis=tuple(range(-n, 0)))]


def pool_pads(
    options: Mapping[str, Any],
    shape: Sequence[int],
    extent: Sequence[int],
    strides: Sequence[int],
) -> list[int]:
    """Padding of a pooling node, what `auto_pad` asks for included: all befores, all afters."""
    auto = str(options.get("auto_pad", "NOTSET"))
    n = len(extent)
    if not auto.startswith("SAME"):
        return list(options.get("pads", (0,) * 2 * n))
    total = [
        max((-(-s // t) - 1) * t + e - s, 0) for s, e, t in zip(shape, extent, strides, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*small, *large] if auto == "SAME_UPPER" else [*large, *small]


def _resize(step: Apply, operands: Sequence[Array | None], opset: int) -> list[Array]:
    """Nearest resize is separable: resize an index along each axis, then gather."""
    x = operands[0]
    assert x is not None
    scales = operands[2] if len(operands) > 2 else None
    sizes = operands[3] if len(operands) > 3 else None
    options = _attributes(step)
    axes = [a % x.ndim for a in options.get("axes", range(x.ndim))]
    single = [a for a in step.attributes if a.name not in ("axes", "keep_aspect_ratio_policy")]
    for position, axis in enumerate(axes):
        index = np.arange(x.shape[axis], dtype=np.float32)
        by_scale = None if scales is None or not scales.size else scales[position : position + 1]
        by_size = None if by_scale is not None or sizes is None else sizes[position : position + 1]
        names = ("x", "", "scales" if by_scale is not None else "", "sizes")
        node = onnx.helper.make_node("Resize", names[: 3 if by_size is None else 4], ["y"])
        node.attribute.extend(ir.to_proto(attr) for attr in single)
        feeds = {"x": index, "scales": by_scale, "sizes": by_size}
        (picked,) = _evaluator(node.SerializeToString(), opset).run(
            None, {k: v for k, v in feeds.items() if v is not None}
        )
        x = np.take(x, np.asarray(picked).astype(np.intp), axis=axis)
    return [x]


def _gather_elements(step: Apply, operands: Sequence[Array | None], opset: int) -> list[Array]:
    """Elements along one axis; ONNX's own evaluator is wrong for axes of more than 32."""
    x, index = operands
    assert x is not None
    assert index is not None
    axis = _attributes(step).get("axis", 0) % x.ndim
    part = tuple(slice(None if a == axis else n) for a, n in enumerate(index.shape))
    return [np.take_along_axis(x[part], index, axis)]


FAST = {"MaxPool": _max_pool, "Resize": _resize, "GatherElements": _gather_elements}
