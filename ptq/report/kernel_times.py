"""Which kernel of a compiled module runs where, and its share of the time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptq.errors import MissingDependencyError
from ptq.report.console import print_table
from ptq.runtime import Module, Port, load

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
RUNS = 15


@dataclass(frozen=True)
class KernelTime:
    """A kernel call: the step that it computes, and its median time alone and as a share.

    Without times where the device is not here that it was compiled for.
    """

    step: str
    kernel: str
    microseconds: float | None
    share: float | None


@dataclass(frozen=True)
class ModuleInspection:
    """A compiled module.

    calls: its kernels in order, timed on one thread with random inputs of one call.
    share: kernel -> its part of the time, largest first. untimed: why there are no times, or "".
    """

    model: str
    target: str
    weights: str
    bytes: int
    arena_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    samples: int
    dynamic_batch: bool
    calls: tuple[KernelTime, ...]
    share: dict[str, float]
    untimed: str = ""
    kind: str = "compiled"
    schema_version: int = SCHEMA_VERSION


def inspect_module(path: Path) -> ModuleInspection:
    """Load, time and describe a module.

    Raises:
        InvalidModelError: not a module that runs here.
    """
    module = load(path)
    try:
        calls, untimed = _timed(module), ""
    except MissingDependencyError as error:
        untimed = str(error)
        calls = tuple(KernelTime(call.step, call.kernel, None, None) for call in module.calls)
    totals: Counter[str] = Counter()
    for call in calls:
        totals[call.kernel] += call.share or 0  # type: ignore[assignment]
    return ModuleInspection(
        str(path),
        module.target,
        module.weights,
        path.stat().st_size,
        len(module.arena),
        module.inputs,
        module.outputs,
        module.samples,
        module.dynamic_batch,
        calls,
        {} if untimed else dict(totals.most_common()),
        untimed,
    )


def _timed(module: Module) -> tuple[KernelTime, ...]:
    """Its calls with their times.

    Raises:
        MissingDependencyError: the module is for a device that is not here.
    """
    microseconds = _times(module) / 1e3
    shares = microseconds / microseconds.sum()
    return tuple(
        KernelTime(call.step, call.kernel, float(time), float(share))
        for call, time, share in zip(module.calls, microseconds, shares, strict=True)
    )


def _times(module: Module) -> np.ndarray:
    """Nanoseconds of every call, the median of some runs after one that warms up."""
    rng = np.random.default_rng(0)
    feeds = {port.name: _invented(port, rng) for port in module.inputs}
    return np.median([module.profile(feeds) for _ in range(RUNS + 1)][1:], axis=0)


def _invented(port: Port, rng: np.random.Generator) -> np.ndarray:
    if port.dtype == "float32":
        return rng.normal(size=port.shape).astype(np.float32)
    return rng.integers(0, port.rows, port.shape) if port.rows else np.ones(port.shape, np.int64)


def print_module(found: ModuleInspection, console: Console) -> None:
    """The calls in order, then the shares of the kernels."""
    title = f"{found.model}: compiled for {found.target}, {found.bytes} bytes"
    rows = [
        (c.step, c.kernel, "" if c.microseconds is None else f"{c.microseconds:.1f}",
         "" if c.share is None else f"{c.share:.1%}")
        for c in found.calls
    ]  # fmt: skip
    print_table(console, title, ("step", "kernel", "us", "share"), rows)
    if found.untimed:
        console.print(f"not timed: {found.untimed}", highlight=False)
        return
    shares = [(kernel, f"{share:.1%}") for kernel, share in found.share.items()]
    print_table(console, "all together, one thread", ("kernel", "share"), shares)
