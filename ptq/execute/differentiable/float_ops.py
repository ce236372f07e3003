"""The table of float operators: ONNX name -> a function of tensors and the node."""

from __future__ import annotations

from ptq.execute.differentiable.attention import ATTENTION
from ptq.execute.differentiable.combining import COMBINING
from ptq.execute.differentiable.convolution import CONVOLUTION
from ptq.execute.differentiable.elementwise import ELEMENTWISE
from ptq.execute.differentiable.indexing import INDEXING
from ptq.execute.differentiable.nodes import OpTable
from ptq.execute.differentiable.normalization import NORMALIZATION
from ptq.execute.differentiable.pooling import POOLING
from ptq.execute.differentiable.recurrent import RECURRENT
from ptq.execute.differentiable.reductions import REDUCTIONS
from ptq.execute.differentiable.resizing import RESIZING
from ptq.execute.differentiable.shaping import SHAPING

FLOAT_OPS: OpTable = {
    **ATTENTION,
    **COMBINING,
    **CONVOLUTION,
    **ELEMENTWISE,
    **INDEXING,
    **NORMALIZATION,
    **POOLING,
    **RECURRENT,
    **REDUCTIONS,
    **RESIZING,
    **SHAPING,
}

HOST_OPERANDS: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "CenterCropPad"), frozenset({1})),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Split", "TopK", "CumSum"), frozenset({1})),
    **dict.fromkeys(("CumProd", "Trilu", "AffineGrid", "OneHot"), frozenset({1})),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 2, 3}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    **{name: frozenset({1}) for name in REDUCTIONS if name.startswith("Reduce")},
}
"""Operands that are read as Python numbers; constants among them stay in the host's memory."""
