"""Sums of 16 bits whose operands are rounded by moving them.

    RNE(v) + RNE(w) = ((v + FAR) + (w - FAR))    in float64, where additions round half to even

Beyond 2^52 floats are integers, so that adding FAR rounds; the sum of both is exact, and FAR is
gone. Those operands are codes plus what `moved` says, which the model tells in its metadata for
who reads them (`ptq.execute.taps`).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ptq.integer.flow import reads
from ptq.integer.program import Add, Gemm, Normalize, Program

FAR = 1.5 * 2.0**52
"""In the middle of the floats that are integers and have no larger steps than one."""


def moved_codes(program: Program) -> dict[str, float]:
    """What only a sum of one scale reads -> how far its codes are moved."""
    readings = Counter(ref.name for step in program.steps for ref in reads(step) if ref.codes)
    layers = (s for s in program.steps if isinstance(s, Gemm | Normalize))
    rounds = {s.output for s in layers if _ends_in_a_rounding(program, s)}
    found: dict[str, float] = {}
    for step in program.steps:
        if isinstance(step, Add) and step.multipliers == (1, 1) and step.requantizer.shift == 0:
            operands = (step.a, step.b)
            if rounds.issuperset(operands) and all(readings[name] == 1 for name in operands):
                found |= zip(operands, (FAR, -FAR), strict=True)
    return found


def _ends_in_a_rounding(program: Program, step: Gemm | Normalize) -> bool:
    """True if it makes 16 bits and adds nothing but integers to what it rounds."""
    if program.codes[step.output].dtype is np.uint8:
        return False
    one = 1 << int(step.requantizer.shift) if isinstance(step, Normalize) else 1
    return isinstance(step, Gemm) or bool((step.offset % one == 0).all())
