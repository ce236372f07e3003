"""Networks in torch, so that rounding can be learned: float graphs and integer programs.

`FloatGraph` runs nodes of the prepared float model; `ProgramGraph` runs steps of the integer
program on codes held in floating point. Importing this package imports torch.
"""

from ptq.execute.differentiable.float_graph import FloatGraph, unsupported
from ptq.execute.differentiable.program_graph import ProgramGraph, ProgramValues
from ptq.execute.differentiable.rounding import (
    Quantiser,
    Rounding,
    drop_quantization,
    interpolate,
    round_through,
)
from ptq.execute.differentiable.tensors import to_array, to_tensor
from ptq.execute.differentiable.threads import one_thread

__all__ = [
    "FloatGraph",
    "ProgramGraph",
    "ProgramValues",
    "Quantiser",
    "Rounding",
    "drop_quantization",
    "interpolate",
    "one_thread",
    "round_through",
    "to_array",
    "to_tensor",
    "unsupported",
]
