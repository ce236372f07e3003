"""A target against the reference, code by code, and the integer network against the float one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ptq.execute.float import FloatRunner
from ptq.execute.taps import graph_values, tapped
from ptq.integer.program import Program
from ptq.integer.reference import Reference
from ptq.plan import ActivationPlan
from ptq.report.flow import after_islands, makers
from ptq.report.metrics import Fidelity, Scores
from ptq.report.session import Batch, open_session

Array = npt.NDArray[Any]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerCheck:
    """One code tensor.

    step: what computes it. first: position, got and wanted of the first mismatch, or "".
    after_island: a float island lies before it, so that equality is not promised.
    float_scores: its values against the float model's tensor, or None.
    """

    name: str
    step: str
    codes: int
    mismatches: int
    max_difference: int
    first: str
    after_island: bool
    float_scores: Scores | None


@dataclass(frozen=True)
class OutputCheck:
    """One output of the model as it is deployed, with nothing tapped."""

    name: str
    values: int
    mismatches: int
    after_island: bool
    float_scores: Scores | None


@dataclass(frozen=True)
class Verification:
    """What was compared and what differed.

    mismatches: differing codes of every tensor and differing values of the outputs, where
        equality is promised: everywhere but after a float island.
    island_mismatches: those after an island, whose float arithmetic is the runtime's own.
    hidden: code tensors that the target does not have, so they were not compared.
    """

    samples: int
    tensors: int
    codes: int
    mismatches: int
    island_mismatches: int
    layers: tuple[LayerCheck, ...]
    outputs: tuple[OutputCheck, ...]
    hidden: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """No mismatch where equality is promised."""
        return self.mismatches == 0


class Runner(Protocol):
    """Something that runs the target: a session of onnxruntime, or a compiled module."""

    @property
    def grids(self) -> Mapping[str, ActivationPlan]:
        """Boundary values that are codes."""
        ...

    def feeds(self, batch: Batch) -> dict[str, Array]:
        """What it is fed for a batch of float inputs."""
        ...

    def run(self, feeds: Batch) -> dict[str, Array]:
        """Outputs by name for what `feeds` returned."""
        ...


@dataclass(frozen=True)
class Runners:
    """deployed: as users run it. tapped: gives the codes of values under the names `code_names`."""

    deployed: Runner
    tapped: Runner | None
    code_names: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """What is verified.

    target: the emitted model, or what runs it. code_names: value name -> the name of its codes in
    the target. float_model: the prepared float model, or None to compare integers only.
    """

    target: ir.Model | Runners
    program: Program
    code_names: Mapping[str, str]
    float_model: ir.Model | None = None


@dataclass
class _Count:
    """Streaming comparison of one integer tensor."""

    values: int = 0
    mismatches: int = 0
    max_difference: int = 0
    first: str = ""

    def add(self, wanted: Array, got: Array) -> None:
        self.values += wanted.size
        if wanted.shape != got.shape:
            self.mismatches += max(wanted.size, 1)
            self.first = self.first or f"shape {list(got.shape)}, wanted {list(wanted.shape)}"
            return
        same = (wanted == got) | ((wanted != wanted) & (got != got))
        if same.all():
            return
        self.mismatches += int((~same).sum())
        if wanted.dtype.kind in "iu":
            difference = np.abs(wanted.astype(np.int64) - got.astype(np.int64))
            self.max_difference = max(self.max_difference, int(difference.max()))
        where = tuple(int(i) for i in np.argwhere(~same)[0])
        self.first = self.first or f"{list(where)}: {got[where]}, wanted {wanted[where]}"


@dataclass
class _Tally:
    """Everything that is accumulated over the batches."""

    codes: dict[str, _Count]
    outputs: dict[str, _Count]
    floats: dict[str, Fidelity] = field(default_factory=dict)
    output_floats: dict[str, Fidelity] = field(default_factory=dict)
    samples: int = 0


def verify(
    subject: Subject,
    batches: Iterable[Batch],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Run the target tapped and untapped and the reference on every batch, and compare.

    batches: float inputs by name. progress: called with the number of samples done.

    Raises:
        UnsupportedModelError: onnxruntime does not load the target.
        CalibrationError: the samples do not fit.
    """
    target = subject.target
    runners = target if isinstance(target, Runners) else _open(target, subject.code_names, threads)
    names = runners.code_names
    check = _Check(
        subject,
        Reference(subject.program),
        runners.deployed,
        runners.tapped,
        names,
        _float_runner(subject, names),
    )
    outputs = [boundary.name for boundary in subject.program.outputs]
    tally = _Tally({name: _Count() for name in names}, {name: _Count() for name in outputs})
    for batch in batches:
        check.add(batch, tally)
        if progress is not None:
            progress(tally.samples)
    return _verification(subject, tally)


def _open(model: ir.Model, code_names: Mapping[str, str], threads: int | None) -> Runners:
    """Sessions of a model as it is, and with the codes that it has as outputs."""
    visible = graph_values(model)
    names = {n: t for n, t in code_names.items() if t in visible}
    taps = tapped(model, list(names.values()))
    return Runners(
        open_session(model, name="target", threads=threads),
        open_session(taps, name="tapped target", threads=threads) if names else None,
        names,
    )


def _float_runner(subject: Subject, names: Mapping[str, str]) -> FloatRunner | None:
    """Taps the float tensors that the codes stand for, and the outputs."""
    if subject.float_model is None:
        return None
    known = graph_values(subject.float_model)
    outputs = [b.name for b in subject.program.outputs if b.name in known]
    tensors = [n for n in names if n in known and known[n].dtype == ir.DataType.FLOAT]
    return FloatRunner(subject.float_model, list(dict.fromkeys([*tensors, *outputs])))


@dataclass(frozen=True)
class _Check:
    """Open sessions, and the comparison of one batch."""

    subject: Subject
    reference: Reference
    session: Runner
    tapped: Runner | None
    names: Mapping[str, str]
    floats: FloatRunner | None

    def add(self, batch: Batch, tally: _Tally) -> None:
        """Compare everything on one batch."""
        wanted = self.reference.run_codes(batch)
        feeds = self.session.feeds(batch)
        if self.tapped is not None:
            found = self.tapped.run(feeds)
            for name, target_name in self.names.items():
                tally.codes[name].add(wanted[name], found[target_name])
        values = self._outputs(batch, wanted)
        deployed = self.session.run(feeds)
        for name, count in tally.outputs.items():
            exposed = name in self.session.grids
            count.add(wanted[name] if exposed else values[name], deployed[name])
        if self.floats is not None:
            self._add_floats(batch, wanted, values, tally)
        tally.samples += max((len(x) for x in batch.values() if x.ndim), default=1)

    def _outputs(self, batch: Batch, codes: Mapping[str, Array]) -> dict[str, Array]:
        """Raw outputs of the reference; run again only where they are not just dequantised."""
        grids = self.subject.program.codes
        outputs = [boundary.name for boundary in self.subject.program.outputs]
        if all(name in codes and name in grids for name in outputs):
            return {name: grids[name].dequantize(codes[name]) for name in outputs}
        return self.reference.run(batch)

    def _add_floats(
        self, batch: Batch, codes: Mapping[str, Array], values: Batch, tally: _Tally
    ) -> None:
        """Values of the codes, and the outputs, against the float model."""
        assert self.floats is not None
        for runner in self.floats.split(batch):
            for name, x in runner.run(batch).items():
                if name in values:
                    tally.output_floats.setdefault(name, Fidelity()).add(x, values[name])
                if name in self.names:
                    y = self.subject.program.codes[name].dequantize(codes[name])
                    tally.floats.setdefault(name, Fidelity()).add(x, y)


def _verification(subject: Subject, tally: _Tally) -> Verification:
    program = subject.program
    tainted, made = after_islands(program), makers(program)
    layers = tuple(
        LayerCheck(
            name=name,
            step=made.get(name, "constant"),
            codes=count.values,
            mismatches=count.mismatches,
            max_difference=count.max_difference,
            first=count.first,
            after_island=name in tainted,
            float_scores=tally.floats[name].scores() if name in tally.floats else None,
        )
        for name, count in tally.codes.items()
    )
    outputs = tuple(
        OutputCheck(
            name=name,
            values=count.values,
            mismatches=count.mismatches,
            after_island=name in tainted,
            float_scores=(
                tally.output_floats[name].scores() if name in tally.output_floats else None
            ),
        )
        for name, count in tally.outputs.items()
    )
    checks: tuple[LayerCheck | OutputCheck, ...] = (*layers, *outputs)
    return Verification(
        samples=tally.samples,
        tensors=len(layers),
        codes=sum(layer.codes for layer in layers),
        mismatches=sum(check.mismatches for check in checks if not check.after_island),
        island_mismatches=sum(check.mismatches for check in checks if check.after_island),
        layers=layers,
        outputs=outputs,
        hidden=tuple(n for n in program.codes if n not in tally.codes),
    )
