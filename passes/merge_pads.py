"""Merge an explicit Pad with zeros into the pads of the Conv or AveragePool after it.

A convolution pads with zeros itself, so Conv(Pad(x)) = Conv(x) with larger pads, exactly; likewise
an AveragePool that counts its padding. The Pad stays for its other readers and goes with the last.

Left alone: a pad value that is not 0, modes reflect and edge, negative pads, pads of batch or
channels, automatic padding, AveragePool with ceil_mode or with pads that it does not count.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.rewriting import (
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    rank,
    remove_unused,
    string_attribute,
)


def merge_pads(graph: ir.Graph) -> int:
    """Merge every mergeable Pad of `graph`; returns into how many layers."""
    merged = sum(_merge(node) for node in graph if is_op(node, "Conv", "AveragePool"))
    if merged:
        remove_unused(graph)
    return merged


def _merge(layer: ir.Node) -> bool:
    source = layer.inputs[0]
    pad = source.producer() if source is not None else None
    if pad is None or not is_op(pad, "Pad") or not _takes_pads(layer):
        return False
    added = _spatial_pads(pad)
    if added is None:
        return False
    own = ints_attribute(layer, "pads") or (0,) * added.size
    total = [int(a + b) for a, b in zip(own, added.reshape(-1), strict=True)]
    if is_op(layer, "AveragePool"):
        kernel = ints_attribute(layer, "kernel_shape") or ()
        if any(size >= limit for size, limit in zip(total, (*kernel, *kernel), strict=True)):
            return False  # onnxruntime wants pads below the kernel's size
        layer.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    layer.attributes["pads"] = ir.AttrInt64s("pads", total)
    layer.attributes.pop("auto_pad", None)
    layer.replace_input_with(0, pad.inputs[0])
    return True


def _takes_pads(layer: ir.Node) -> bool:
    if string_attribute(layer, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if is_op(layer, "Conv"):
        return True
    counted = int_attribute(layer, "count_include_pad", 0) or not any(
        ints_attribute(layer, "pads") or ()
    )
    return bool(counted) and not int_attribute(layer, "ceil_mode", 0)


def _spatial_pads(pad: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
    """The pads as [2, spatial dims] (begins, ends), or None when a layer cannot take them."""
    dims = rank(pad.inputs[0]) or rank(pad.outputs[0])
    pads, value = constant(input_at(pad, 1)), constant(input_at(pad, 2))
    axes = constant(input_at(pad, 3))
    if dims is None or pads is None or string_attribute(pad, "mode", "constant") != "constant":
        return None
    if input_at(pad, 2) is not None and (value is None or np.any(value)):
        return None
    if input_at(pad, 3) is not None and axes is None:
        return None
    full = np.zeros((2, dims), np.int64)
    full[:, range(dims) if axes is None else axes] = pads.reshape(2, -1)
    return full[:, 2:] if dims > 2 and not np.any(full[:, :2]) and np.all(full >= 0) else None
