"""How values flow through an integer program: who makes them, and which ones an island touched."""

from __future__ import annotations

from ptq.integer.flow import reads, writes
from ptq.integer.program import Apply, Program, Ref, Step


def title(step: Step) -> str:
    """What a step is called in reports: its class, or what it applies or computes."""
    if isinstance(step, Apply):
        return step.op_type
    function = getattr(step, "function", "")
    return f"{type(step).__name__}({function})" if function else type(step).__name__


def makers(program: Program) -> dict[str, str]:
    """Value name -> title of the step that makes its codes."""
    return {ref.name: title(s) for s in program.steps for ref in writes(s) if ref.codes}


def after_islands(program: Program) -> set[str]:
    """Names of the values that a float island contributes to."""
    tainted: set[Ref] = set()
    for step in program.steps:
        island = isinstance(step, Apply) and step.island is not None
        if island or not tainted.isdisjoint(reads(step)):
            tainted.update(writes(step))
    return {ref.name for ref in tainted}
