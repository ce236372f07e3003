"""What the values of a program are called in an ONNX graph."""

from __future__ import annotations

from typing import Literal

from ptq.integer.program import Apply, Dequantize, Program, Quantize, Ref

Io = Literal["float", "integer"]


def value_names(program: Program, io: Io = "float") -> dict[Ref, str]:
    """The ONNX name of every raw value and every code tensor of the emitted graph.

    Raw values keep their name, codes are called `<name>_quantized`. With io='integer' the codes
    at the boundary have the boundary's name.
    """
    raw, codes = _raw_names(program), [*program.codes, *program.code_constants]
    names = {Ref(name, False): name for name in raw}
    exposed = set() if io == "float" else exposed_values(program)
    taken = set(raw)
    for name in dict.fromkeys(codes):
        if name in exposed:
            names[Ref(name, True)] = name
            names[Ref(name, False)] = free_name(f"{name}_dequantized", taken)
        else:
            names[Ref(name, True)] = free_name(f"{name}_quantized", taken)
    return names


def _raw_names(program: Program) -> dict[str, None]:
    names = [b.name for b in (*program.inputs, *program.outputs)] + list(program.constants)
    for step in program.steps:
        if isinstance(step, Quantize | Dequantize):
            names.append(step.value)
        elif isinstance(step, Apply):
            refs = (*step.inputs, *step.outputs)
            names += [ref.name for ref in refs if ref is not None and not ref.codes]
    return dict.fromkeys(names)


def exposed_values(program: Program) -> set[str]:
    """Boundary values that become codes under io='integer'."""
    quantized = {s.value for s in program.steps if isinstance(s, Quantize)}
    dequantized = {s.value for s in program.steps if isinstance(s, Dequantize)}
    inputs = {b.name for b in program.inputs} & quantized
    return inputs | ({b.name for b in program.outputs} & dequantized)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, ... if it is taken; takes it."""
    wanted, count = name, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name


def code_names(program: Program, io: Io) -> dict[str, str]:
    """Value name -> what its codes are called in an emitted graph."""
    return {ref.name: name for ref, name in value_names(program, io).items() if ref.codes}
