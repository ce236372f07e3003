"""Fast kernels, where the processor and the shape have one."""

from __future__ import annotations

from ptq.integer.program import Convolve, Gemm
from ptq.targets.tvm.lowering import Lowering


def fast_convolution(state: Lowering, step: Convolve) -> bool:
    """Lower `step` to a fast kernel; False if there is none for it."""
    return False


def fast_gemm(state: Lowering, step: Gemm) -> bool:
    """Lower `step` to a fast kernel; False if there is none for it."""
    return False
