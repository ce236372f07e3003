"""How independent iterations become a machine's work: parallel loops, or threads of a grid.

A kernel says what is independent, by `nest`, and is written once; a binding says how it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ptq.kernels.kernel import Buffer, Expr

PARALLEL_FROM = 16384  # elements; starting threads for less costs more than it gains
STRETCH = 4096
"""A long loop becomes a parallel one over so many elements each."""
BLOCK_THREADS = 128
LINE_BYTES = 64


class Binding(Protocol):
    """What a kernel asks of the machine that it is emitted for."""

    def nest(
        self, extents: Sequence[int], work: int = 1, *, fused: int = 1, neighbours: int = -1
    ) -> AbstractContextManager[list[Expr]]:
        """Open loops over all indices below `extents`, independent of one another.

        work: elements of one iteration. fused: how many of the first loops are one on a CPU.
        neighbours: in which index neighbouring threads of a GPU differ, so that they read together.
        """
        ...

    def local(self, dtype: str, size: int = 1) -> Buffer:
        """Variables of one iteration, in registers where there are enough."""
        ...

    def real(self, value: float, dtype: str = "float32") -> Expr:
        """A float constant, exactly; call it before any loop."""
        ...


def variable(on: Binding, dtype: str, value: Any) -> Buffer:
    """A variable of one iteration, set to `value`."""
    made = on.local(dtype)
    T.buffer_store(made, tirx.const(value, dtype), [0])
    return made


def cache_lines(on: Binding, dtype: str, size: int) -> Buffer:
    """Memory of one iteration on a CPU that begins a line of its cache.

    TVM aligns to 16 bytes, and what crosses lines takes two accesses.
    """
    spare = LINE_BYTES // np.dtype(dtype).itemsize - 1
    last = on.local(dtype, size + spare).access_ptr("rw", offset=spare)
    kind = T.handle(dtype).ty
    line = T.call_llvm_pure_intrin(kind, "llvm.ptrmask", last, T.int64(-LINE_BYTES))
    return T.decl_buffer((size,), dtype, data=T.Bind(line))


def fetch(buffer: Buffer, at: Expr) -> None:
    """Ask a CPU for the cache line of an element, which may lie behind the buffer."""
    for_reading, into_all_levels, data = T.int32(0), T.int32(3), T.int32(1)
    address = tirx.address_of(buffer[at])
    hints = for_reading, into_all_levels, data
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, *hints))


@contextmanager
def serial(extents: Sequence[int]) -> Iterator[list[Expr]]:
    """Open one loop an extent, inside an iteration, and give their variables."""
    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(0, extent)) for extent in extents]


def unravel(flat: Expr, extents: Sequence[int]) -> list[Expr]:
    """The indices of element number `flat`, row-major."""
    indices: list[Expr] = []
    for extent in reversed(extents[1:]):
        indices.insert(0, tirx.floormod(flat, extent))
        flat = tirx.floordiv(flat, extent)
    return [flat, *indices] if extents else []


def through_bits(on: Binding, value: float, dtype: str) -> Expr:
    """A constant by its bits in memory where TVM's text, of seven digits, would change it."""
    number = np.asarray(value, dtype)[()]
    if float(f"{number:.6e}") == number:
        return tirx.const(float(number), dtype)
    whole = f"int{8 * number.itemsize}"
    bits = variable(on, whole, int(number.view(whole)))
    return T.reinterpret(dtype, bits[0])


@dataclass(frozen=True)
class Loops:
    """A CPU: the first loops are one that threads share; the others are serial."""

    @contextmanager
    def nest(
        self, extents: Sequence[int], work: int = 1, *, fused: int = 1, neighbours: int = -1
    ) -> Iterator[list[Expr]]:
        """Parallel only if all iterations together are worth it."""
        del neighbours
        head, tail = list(extents[:fused]), list(extents[fused:])
        long = len(extents) == 1 and not extents[0] % STRETCH and extents[0] >= 2 * STRETCH
        if long:
            head, tail = [extents[0] // STRETCH], [STRETCH]
        jobs = int(np.prod(head, dtype=np.int64))
        worth = int(np.prod(extents, dtype=np.int64)) * work >= PARALLEL_FROM
        with ExitStack() as stack:
            if not extents:
                yield []
                return
            loop = T.parallel(jobs) if jobs > 1 and worth else T.serial(0, jobs)
            indices = unravel(stack.enter_context(loop), head)
            indices += [stack.enter_context(T.serial(0, extent)) for extent in tail]
            yield [indices[0] * STRETCH + indices[1]] if long else indices

    def local(self, dtype: str, size: int = 1) -> Buffer:
        """On the stack: without the annotation a private function would ask the runtime for it."""
        on_stack = {"disable_lower_builtin": True}
        return T.alloc_buffer((size,), dtype, scope="global", annotations=on_stack)

    def real(self, value: float, dtype: str = "float32") -> Expr:
        """As TVM's C code needs it."""
        return through_bits(self, value, dtype)


@dataclass
class Grid:
    """A GPU: a thread an iteration, in blocks of BLOCK_THREADS; `nest` says how many.

    all_digits: the language's code generator writes those of a float.
    """

    all_digits: bool = True
    blocks: int = 0

    @contextmanager
    def nest(
        self, extents: Sequence[int], work: int = 1, *, fused: int = 1, neighbours: int = -1
    ) -> Iterator[list[Expr]]:
        """The last block's surplus threads do nothing."""
        del work, fused
        order = list(range(len(extents)))
        if order:
            order.append(order.pop(neighbours))
        total = int(np.prod(extents, dtype=np.int64))
        self.blocks = -(-total // BLOCK_THREADS)
        with (
            T.launch_thread("blockIdx.x", self.blocks) as block,
            T.launch_thread("threadIdx.x", BLOCK_THREADS) as thread,
        ):
            flat = block * BLOCK_THREADS + thread
            with T.If(flat < total), T.Then():
                found = unravel(flat, [extents[axis] for axis in order])
                by_axis = dict(zip(order, found, strict=True))
                yield [by_axis[axis] for axis in range(len(extents))]

    def local(self, dtype: str, size: int = 1) -> Buffer:
        """Registers, as long as every index is a constant."""
        return T.alloc_buffer((size,), dtype, scope="local")

    def real(self, value: float, dtype: str = "float32") -> Expr:
        """TVM's CUDA code has all bits of a float32; a float64 is 53 bits and a power of two."""
        if not self.all_digits:
            return through_bits(self, value, dtype)
        if dtype == "float32":
            return T.float32(float(np.float32(value)))
        mantissa, exponent = np.frexp(value)
        whole = tirx.const(float(mantissa * 2.0**53), dtype)
        return tirx.ldexp(whole, T.int32(int(exponent) - 53))
