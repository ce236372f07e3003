"""What a kernel is: one loop nest over flat buffers, its shape fixed, beside its numpy oracle.

A kernel is a frozen dataclass; equal ones are compiled once. Its last parameter is the one that
it writes. Buffers are flat; a kernel knows the strides of its operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Expr = Any  # a TIR expression
Buffer = Any  # a TIR buffer


@dataclass(frozen=True)
class Parameter:
    """A flat buffer of `size` elements."""

    name: str
    dtype: str
    size: int


class Kernel(Protocol):
    """One loop nest."""

    def parameters(self) -> tuple[Parameter, ...]:
        """The buffers, in the order of the call; the last is written, the others are read."""
        ...

    def emit(self, on: Any, *buffers: Any, **unused: Any) -> None:
        """Build the loops for a machine (kernels/binding.py); called inside a PrimFunc."""
        ...

    def oracle(self, *arrays: Any, **unused: Any) -> Array:
        """What the last buffer holds afterwards, from all the others, in numpy."""
        ...


def title(kernel: Kernel) -> str:
    """A C name for the kernel's function: its class in small letters."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(kernel).__name__).strip("_")


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
