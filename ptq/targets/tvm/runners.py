"""A compiled module as `ptq verify` wants it: outputs as deployed, and all codes of a twin of it.

The twin is the same kernels with a memory plan that keeps every tensor until the call returns; it
has the usual tiles where the module has some that were found by trial.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ptq import runtime
from ptq.integer.program import Program
from ptq.plan import ActivationPlan
from ptq.targets.tvm.module import CodeView, CompileOptions, compile_program

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Deployed:
    """The module itself; a runner as ptq.report.verification has it."""

    module: runtime.Module
    grids: Mapping[str, ActivationPlan] = field(default_factory=dict)

    def feeds(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Float inputs, as they are."""
        return {port.name: batch[port.name] for port in self.module.inputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Float outputs by name."""
        return self.module.run(feeds)


@dataclass(frozen=True)
class Tapped:
    """The twin: code tensors by the names of their values."""

    module: runtime.Module
    views: Mapping[str, CodeView]
    grids: Mapping[str, ActivationPlan] = field(default_factory=dict)

    def feeds(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Float inputs, as they are."""
        return {port.name: batch[port.name] for port in self.module.inputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Codes by name; one call at a time, because the arena holds one call's."""
        parts: dict[str, list[Array]] = {name: [] for name in self.views}
        arena = np.asarray(self.module.arena)
        for index, call in enumerate(self._calls(feeds)):
            self.module.run(call)
            for name, view in self.views.items():
                if index == 0 or view.axis is not None:
                    parts[name].append(view.read(arena))
        return {
            name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays, self.views[name].axis)
            for name, arrays in parts.items()
        }

    def _calls(self, feeds: Mapping[str, Array]) -> Iterator[Mapping[str, Array]]:
        """A batch of any size in calls; one of a fixed size is one, states beside it and all."""
        if not self.module.dynamic_batch:
            yield feeds
            return
        step = self.module.samples
        for start in range(0, len(feeds[self.module.inputs[0].name]), step):
            yield {name: x[start : start + step] for name, x in feeds.items()}


def tapped_twin(program: Program, module: runtime.Module, threads: int = 1) -> Tapped:
    """Compile `program` for the module's target, so that all its codes can be read.

    Raises:
        MissingDependencyError: TVM is not installed.
    """
    batch = None if module.dynamic_batch else module.samples
    options = CompileOptions(
        module.target, batch, reuse=False, weights=module.weights, sizes=module.sizes
    )
    compiled = compile_program(program, options)
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        path = Path(folder) / "tapped.so"
        compiled.export(path)
        twin = runtime.load(path, threads=threads)
    # Views without an axis have no batch to join; nothing else lacks one.
    views = {name: found for name, found in compiled.code_views.items() if found.view.shape}
    return Tapped(twin, views)
