"""What the steps of an integer program read and write."""

from __future__ import annotations

from ptq.integer.program import Apply, Dequantize, Quantize, Ref, Step

OPERANDS = ("input", "a", "b")
"""Fields of steps that name codes."""


def reads(step: Step) -> tuple[Ref, ...]:
    """The values that a step reads, without what it carries itself."""
    if isinstance(step, Apply):
        return tuple(ref for ref in step.inputs if ref is not None)
    if isinstance(step, Quantize | Dequantize):
        return (Ref(step.value, codes=isinstance(step, Dequantize)),)
    codes = (Ref(getattr(step, name), codes=True) for name in OPERANDS if hasattr(step, name))
    keep = getattr(step, "keep", None)
    return (*codes, keep) if keep is not None else tuple(codes)


def writes(step: Step) -> tuple[Ref, ...]:
    """The values that a step makes."""
    if isinstance(step, Apply):
        return tuple(ref for ref in step.outputs if ref.name)
    if isinstance(step, Quantize | Dequantize):
        return (Ref(step.value, codes=isinstance(step, Quantize)),)
    return (Ref(step.output, codes=True),)
