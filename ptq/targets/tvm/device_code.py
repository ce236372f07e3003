"""A network for a GPU: its kernels, and a table of launches for native/device_module.c.

Constants, scratch memory, inputs and outputs are one allocation on the device; an operand is an
offset into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptq.targets.tvm.description import Description
from ptq.targets.tvm.device_text import device_text
from ptq.targets.tvm.driver import kernel_names, lifetimes
from ptq.targets.tvm.linking import LINK_FLAGS, Contents, native_objects, run
from ptq.targets.tvm.lowering import Feed, Lowering, Operand, Result, Stored, Tensor
from ptq.targets.tvm.memory_plan import MemoryPlan, plan_memory
from ptq.targets.tvm.nvcc import compile_cuda
from ptq.targets.tvm.ports import Port

SOURCES = ("contents.c", "device_module.c")
ALIGNMENT = 256
LAUNCH = """typedef struct {
    int32_t kernel;
    uint32_t blocks, threads;
    int32_t first, operands;
} Launch;"""


@dataclass(frozen=True)
class DeviceKind:
    """sources: the device's part of the host's code.

    image: text of the kernels, architectures -> what the device loads.
    """

    sources: tuple[str, ...]
    image: Callable[[str, Sequence[str]], bytes]


def _as_text(text: str, architectures: Sequence[str]) -> bytes:
    """The driver compiles it."""
    del architectures
    return text.encode()


KINDS = {
    "cuda": DeviceKind(("cuda_driver.c", "cuda_device.c"), compile_cuda),
    "opencl": DeviceKind(("opencl_driver.c", "opencl_device.c"), _as_text),
}


@dataclass(frozen=True)
class Launch:
    """A kernel by its number, its grid, and its operands' places in the allocation."""

    kernel: int
    blocks: int
    threads: int
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Allocation:
    """Where everything is on the device, in bytes. ports: inputs and outputs."""

    weights_bytes: int
    arena: int
    ports: Mapping[Operand, int]
    memory: MemoryPlan
    size: int

    def place(self, operand: Operand) -> int:
        """Of a kernel's operand."""
        if isinstance(operand, Stored):
            return operand.offset
        if isinstance(operand, Tensor):
            return self.arena + self.memory.offsets[operand.name]
        return self.ports[operand]


@dataclass(frozen=True)
class DeviceCode:
    """text: of the kernels. image: what the device loads. names: of the kernels."""

    kind: DeviceKind
    text: str
    image: bytes
    names: tuple[str, ...]
    launches: tuple[Launch, ...]
    allocation: Allocation
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def link(self, path: Path, compiler: str, folder: Path, contents: Contents) -> None:
        """The host's part is C; it finds the device's driver when it runs."""
        image = folder / "kernels.image"
        image.write_bytes(self.image)
        sources = (*SOURCES, *self.kind.sources)
        objects = native_objects(
            folder, compiler, contents, sources, self._header(), {"PTQ_IMAGE": image}
        )
        run([compiler, "-shared", *LINK_FLAGS, *objects, "-ldl", "-o", str(path)], "link a module")

    def _header(self) -> str:
        """What device_module.c has to know of one network."""
        operands = [place for launch in self.launches for place in launch.operands]
        rows, first = [], 0
        for launch in self.launches:
            count = len(launch.operands)
            rows.append(f"{{{launch.kernel}, {launch.blocks}, {launch.threads}, {first}, {count}}}")
            first += count
        places = self.allocation
        inputs, outputs = (
            [places.ports[kind(port.name)] for port in group]
            for kind, group in ((Feed, self.inputs), (Result, self.outputs))
        )
        named = ", ".join(f'"{name}"' for name in self.names)
        tables = [
            ("const char *const kernel_names", named),
            ("const int64_t operands", _joined(operands)),
            ("const int64_t input_offsets", _joined(inputs)),
            ("const int64_t output_offsets", _joined(outputs)),
            ("const Launch launches", ", ".join(rows)),
        ]
        return "\n".join(
            [
                f"#define PTQ_KERNELS {len(self.names)}",
                f"#define PTQ_MOST_OPERANDS {max(len(call.operands) for call in self.launches)}",
                f"#define PTQ_WEIGHTS_BYTES {places.weights_bytes}",
                f"#define PTQ_ARENA_OFFSET {places.arena}",
                f"#define PTQ_DEVICE_BYTES {places.size}",
                LAUNCH,
                *(f"__attribute__((unused)) static {name}[] = {{{row}}};" for name, row in tables),
                "",
            ]
        )


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def device_code(
    lowering: Lowering,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    description: Description,
    reuse: bool,
) -> tuple[DeviceCode, MemoryPlan]:
    """Compile all kernels, and say where the tensors are."""
    memory = plan_memory(lifetimes(lowering.calls, lowering.sizes), reuse=reuse)
    allocation = _allocate(lowering, inputs, outputs, memory)
    names = kernel_names(lowering.calls)
    made = device_text({name: kernel for kernel, name in names.items()}, description.target())
    numbers = {name: number for number, name in enumerate(names.values())}
    launches = []
    for call in lowering.calls:
        name = names[call.kernel]
        places = tuple(map(allocation.place, call.operands))
        launches.append(Launch(numbers[name], *made.grids[name], places))
    kind = KINDS[description.kind]
    image = kind.image(made.text, description.architectures)
    code = DeviceCode(
        kind, made.text, image, tuple(names.values()), tuple(launches), allocation, tuple(inputs),
        tuple(outputs),
    )  # fmt: skip
    return code, memory


def _allocate(
    lowering: Lowering, inputs: Sequence[Port], outputs: Sequence[Port], memory: MemoryPlan
) -> Allocation:
    """Constants first, then scratch memory, then the ports."""
    arena = _rounded(max(len(lowering.blob), 1))
    end = arena + _rounded(memory.size)
    ports: dict[Operand, int] = {}
    for kind, group in ((Feed, inputs), (Result, outputs)):
        for port in group:
            ports[kind(port.name)] = end
            end += _rounded(port.size_bytes)
    return Allocation(len(lowering.blob), arena, ports, memory, end)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
