"""The steps of the integer program that belong to one block."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.integer.blocks import Block
from ptq.integer.flow import reads, writes
from ptq.integer.program import Program, Ref, Step


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
