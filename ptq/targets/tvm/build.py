"""From a traced program to compiled code: lower, plan memory, generate."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

from ptq.integer.program import Program
from ptq.kernels.view import strided
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.device_code import device_code
from ptq.targets.tvm.features import features_of
from ptq.targets.tvm.host_code import host_code
from ptq.targets.tvm.linking import Code
from ptq.targets.tvm.lowering import Lowering
from ptq.targets.tvm.memory_plan import MemoryPlan
from ptq.targets.tvm.module import CodeView, Compiled, CompileOptions, describe
from ptq.targets.tvm.ports import Port, input_ports, output_ports
from ptq.targets.tvm.steps import RULES
from ptq.targets.tvm.trace import Trace
from ptq.targets.tvm.tune import Tuner, cache_file


def build(
    program: Program, traced: Trace, description: Description, options: CompileOptions
) -> Compiled:
    """Lower, plan memory, generate code."""
    target = description.target()
    tuner = Tuner(options.tune, target, description.text, cache_file()) if options.tune else None
    lowering = Lowering(program, traced, features_of(target), options.weights, tuner)
    lowering.run(RULES)
    inputs, outputs = input_ports(program, traced), output_ports(program, traced)
    code, memory = _code(lowering, inputs, outputs, description, options.reuse)
    calls = [(call.step, type(call.kernel).__name__) for call in lowering.calls]
    named = replace(options, target=description.text)
    kernels: dict[str, list[str]] = defaultdict(list)
    for step, kernel in calls:
        kernels[step].append(kernel)
    return Compiled(
        code,
        description.text,
        bytes(lowering.blob),
        describe(
            (inputs, outputs),
            named,
            traced,
            memory.size,
            calls,
            _identity(lowering),
            on_device=description.on_device,
        ),
        {step: tuple(names) for step, names in kernels.items()},
        _code_views(lowering, memory),
        lowering.plain,
    )


def _code(
    lowering: Lowering, inputs: list[Port], outputs: list[Port], machine: Description, reuse: bool
) -> tuple[Code, MemoryPlan]:
    """For the processor or the device of the target."""
    if machine.on_device:
        return device_code(lowering, inputs, outputs, machine, reuse)
    return host_code(lowering, inputs, outputs, machine.target(), reuse)


def _identity(lowering: Lowering) -> str:
    """A hash of the constants and of all calls."""
    calls = "\n".join(map(repr, lowering.calls)).encode()
    return hashlib.sha256(lowering.blob + calls).hexdigest()


def _code_views(lowering: Lowering, memory: MemoryPlan) -> dict[str, CodeView]:
    """Where the codes of every value are, for those that the arena holds, be it for another one."""
    places = {name: (name, lowering.view(name)) for name in lowering.trace.codes}
    for name, (origin, elements) in lowering.passing.items():
        view = strided(elements.reshape(lowering.shape(name)))
        if view is not None:
            places[name] = origin, view
    return {
        name: CodeView(
            memory.offsets[holder], lowering.dtype(name), view, lowering.trace.axes.get(name, 0)
        )
        for name, (holder, view) in places.items()
        if holder in memory.offsets
    }
