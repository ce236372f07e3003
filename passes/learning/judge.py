"""How near a block of integers comes to the float one on samples it was not learned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq.integer.program import Program, Ref, Step
from ptq.passes.learning.learn_block import hard_run
from ptq.passes.learning.samples import PART, SampleStore, run_parts
from ptq.passes.learning.steps import BlockSteps

Array = npt.NDArray[Any]


def block_error(
    program: Program,
    block: BlockSteps,
    steps: Sequence[Step],
    given: SampleStore,
    exact: SampleStore,
    index: npt.NDArray[np.intp],
) -> float:
    """Squared error of a block's float outputs over their energy, summed over the outputs."""
    run = hard_run(program, block, tuple(steps))
    inputs = [ref.name for ref in block.inputs]
    outputs = {ref.name: ref for ref in block.outputs if exact.dtype(ref.name).kind == "f"}
    error = dict.fromkeys(outputs, 0.0)
    energy = dict.fromkeys(outputs, 1e-12)
    parts = exact.layout.parts(index, PART)
    for part, found in run_parts(lambda some: run(given.take(inputs, some)), parts):
        for name, wanted in exact.take(outputs, part).items():
            x = as_floats(program, outputs[name], found[name])
            error[name] += float(np.square(x - wanted, dtype=np.float64).sum())
            energy[name] += float(np.square(wanted, dtype=np.float64).sum())
    return sum(error[name] / energy[name] for name in outputs)


def as_floats(program: Program, ref: Ref, x: Array) -> Array:
    """A tensor of the integer network in the float model's units."""
    return program.codes[ref.name].dequantize(x) if ref.codes else x
