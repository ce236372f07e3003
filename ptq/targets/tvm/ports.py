"""The arrays that a module takes and gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptq import runtime
from ptq.integer.program import Program
from ptq.targets.tvm.origins import dtype_of, row_counts
from ptq.targets.tvm.trace import Trace

TABLE = "__attribute__((unused)) static const int64_t"
C_TYPES = {"float32": "float", "int64": "int64_t", "int32": "int32_t"}


class Port(runtime.Port):
    """What `ptq.runtime` knows of an input or output, and what C does."""

    @property
    def size(self) -> int:
        """Elements of one call."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        """Of one call."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def c_type(self) -> str:
        """Of its elements."""
        return C_TYPES[self.dtype]


def input_ports(program: Program, traced: Trace) -> list[Port]:
    """What the module takes: float32, or integers where the network does not quantise them."""
    rows = row_counts(program)
    return [
        Port(b.name, traced.raw[b.name].shape, str(dtype_of(b, program)), rows.get(b.name, 0))
        for b in program.inputs
    ]


def output_ports(program: Program, traced: Trace) -> list[Port]:
    """What the module gives: float32."""
    return [Port(b.name, tuple(traced.raw[b.name].shape)) for b in program.outputs]


def ports_header(
    inputs: Sequence[Port], outputs: Sequence[Port], arena_bytes: int, calls: int
) -> str:
    """What module.c has to know of one network: its arrays, their elements, and its arena."""
    tables = {
        "input_sizes": [port.size for port in inputs],
        "input_bytes": [port.size_bytes for port in inputs],
        "input_rows": [port.rows for port in inputs],
        "output_sizes": [port.size for port in outputs],
    }
    pointers = [f"const {p.c_type} *" for p in inputs] + [f"{p.c_type} *" for p in outputs]
    arguments = [f"inputs[{i}]" for i in range(len(inputs))]
    arguments += [f"outputs[{i}]" for i in range(len(outputs))]
    lines = [
        "#include <stdint.h>",
        f"#define PTQ_ARENA_BYTES {arena_bytes}",
        f"#define PTQ_CALLS {calls}",
        f"#define PTQ_INPUTS {len(inputs)}",
        f"#define PTQ_OUTPUTS {len(outputs)}",
        *(f"{TABLE} {name}[] = {{{', '.join(map(str, row))}}};" for name, row in tables.items()),
        f"int32_t ptq_entry({', '.join(pointers)}, void *arena);",
        f"#define PTQ_PORTS {', '.join(arguments)}",
    ]
    return "\n".join(lines) + "\n"
