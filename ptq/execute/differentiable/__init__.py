"""Networks in torch, so that rounding can be learned: float graphs and integer programs.

`FloatGraph` runs nodes of the prepared float model; `ProgramGraph` runs steps of the integer
program on codes held in floating point. Importing this package imports torch.
"""

from ptq.execute.differentiable.float_graph import FloatGraph, unsupported
from ptq.execute.differentiable.tensors import to_array, to_tensor

__all__ = ["FloatGraph", "to_array", "to_tensor", "unsupported"]
