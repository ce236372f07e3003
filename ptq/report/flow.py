"""How values flow through an integer program: who makes them, and which ones an island touched."""

from __future__ import annotations

from dataclasses import fields

from ptq.integer.program import Apply, Dequantize, Program, Quantize, Ref, Step

_READ_FIELDS = ("input", "a", "b")


def reads(step: Step) -> tuple[Ref, ...]:
    """The values that a step reads, by name and kind."""
    if isinstance(step, Apply):
        return tuple(ref for ref in step.inputs if ref is not None)
    if isinstance(step, Quantize | Dequantize):
        return (Ref(step.value, isinstance(step, Dequantize)),)
    names = {f.name for f in fields(step)}
    return tuple(Ref(getattr(step, n), True) for n in _READ_FIELDS if n in names)


def writes(step: Step) -> tuple[Ref, ...]:
    """The values that a step makes."""
    if isinstance(step, Apply):
        return step.outputs
    if isinstance(step, Quantize | Dequantize):
        return (Ref(step.value, isinstance(step, Quantize)),)
    return (Ref(step.output, True),)


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
