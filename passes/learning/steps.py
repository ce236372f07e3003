"""The steps of the integer program that belong to one block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ptq.integer.blocks import Block
from ptq.integer.program import Apply, Dequantize, Program, Quantize, Ref, Step


@dataclass(frozen=True)
class BlockSteps:
    """steps: in order; inputs, outputs: the block's tensors in the form that the program has."""

    steps: tuple[Step, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]


def block_steps(program: Program, block: Block) -> BlockSteps:
    """The steps that make the block's outputs from its inputs, quantising raw inputs again."""
    origin = origins(program)
    inputs = tuple(origin[name] for name in block.inputs if name in origin)
    outputs = tuple(origin[name] for name in block.outputs if name in origin)
    needed, taken = set(outputs), []
    for step in reversed(program.steps):
        if not needed.isdisjoint(made := set(writes(step))):
            taken.append(step)
            needed = (needed - made) | (set(reads(step)) - set(inputs))
    return BlockSteps(tuple(reversed(taken)), inputs, outputs)


def origins(program: Program) -> dict[str, Ref]:
    """Every tensor in the form that it is made in: raw at the model's input, codes after a unit."""
    found = {boundary.name: Ref(boundary.name, codes=False) for boundary in program.inputs}
    for step in program.steps:
        for ref in writes(step):
            found.setdefault(ref.name, ref)
    return found


def reads(step: Step) -> Iterable[Ref]:
    """The values that a step reads, without what it carries itself."""
    if isinstance(step, Apply):
        return [ref for ref in step.inputs if ref is not None]
    if isinstance(step, Quantize | Dequantize):
        return [Ref(step.value, codes=isinstance(step, Dequantize))]
    fields: Any = step
    names = [getattr(fields, field) for field in ("input", "a", "b") if hasattr(fields, field)]
    return [Ref(name, codes=True) for name in names]


def writes(step: Step) -> Iterable[Ref]:
    """The values that a step makes."""
    if isinstance(step, Apply):
        return [ref for ref in step.outputs if ref.name]
    if isinstance(step, Quantize | Dequantize):
        return [Ref(step.value, codes=isinstance(step, Quantize))]
    return [Ref(step.output, codes=True)]
