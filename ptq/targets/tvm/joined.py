"""Results that are joined as floats: dequantised codes go straight to their places in the output.

So no float tensor is kept for a copy: the steps that join and move are followed with element
numbers, which say where each code's number belongs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptq.errors import UnsupportedModelError
from ptq.integer import movement
from ptq.integer.claims import MOVES
from ptq.integer.program import Apply, Program
from ptq.kernels.boundary import Dequantize
from ptq.kernels.view import addresses, smallest_box, strided
from ptq.targets.tvm.layout import view_of
from ptq.targets.tvm.lowering import Lowering, Result
from ptq.targets.tvm.trace import dequantized

Index = npt.NDArray[np.int64]
JOINS = frozenset({*MOVES, "Concat", "Gather"})


def join_results(state: Lowering, step: Apply) -> None:
    """Write those of the step's results that are outputs of the program."""
    outputs = {boundary.name for boundary in state.program.outputs}
    for ref in step.outputs:
        if ref.name in outputs:
            _join(state, step.name, ref.name)


def _join(state: Lowering, step: str, output: str) -> None:
    numbers: dict[str, int] = {}
    index = _elements(state, output, numbers)
    y = view_of(index.shape, False)
    for name, start in numbers.items():
        elements, grid = addresses(state.view(name)), state.plan(name)
        mine = (index >= start) & (index < start + len(elements))
        box = smallest_box(mine)
        x = strided(elements[index[box] - start]) if mine[box].all() else None
        if x is None:
            raise UnsupportedModelError(
                f"{step}: {name} goes to places in output {output} that lie in no regular order: "
                "use --target onnx, or end the model before it"
            )
        kernel = Dequantize(x, y.part(box), float(grid.scale), grid.zero_point, state.dtype(name))
        state.call(step, kernel, state.codes(name), Result(output))


def _elements(state: Lowering, name: str, numbers: dict[str, int]) -> Index:
    """Which code each element of a float tensor is; code tensors are numbered one after another."""
    if name in dequantized(state.program):
        shape = state.shape(name)
        if name not in numbers:
            numbers[name] = sum(int(np.prod(state.shape(other))) for other in numbers)
        start = numbers[name]
        return np.arange(start, start + int(np.prod(shape))).reshape(shape)
    step = _writer(state.program, name)
    operands = [
        None
        if ref is None
        else state.raw(ref.name)
        if ref.name in state.trace.static
        else _elements(state, ref.name, numbers)
        for ref in step.inputs
    ]
    results = movement.apply(step, operands, state.program.opset, {})
    position = [ref.name for ref in step.outputs].index(name)
    return np.asarray(results[position], np.int64)


def _writer(program: Program, name: str) -> Apply:
    return next(
        step
        for step in program.steps
        if isinstance(step, Apply) and any(r.name == name and not r.codes for r in step.outputs)
    )


def joined(program: Program, static: frozenset[str]) -> frozenset[str]:
    """Float values that are dequantised codes, in places of their own."""
    found = set(dequantized(program))
    for step in program.steps:
        if not isinstance(step, Apply) or step.op_type not in JOINS or step.island is not None:
            continue
        sources = [ref.name for ref in step.inputs if ref and ref.name not in static]
        if sources and all(name in found for name in sources):
            found |= {ref.name for ref in step.outputs if not ref.codes}
    return frozenset(found)
