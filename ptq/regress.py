"""Is a model as good as it was? Measure it, and put every figure before its gate."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ptq.errors import UsageError
from ptq.evaluate import Samples, first_rows, float_inputs, with_preprocess
from ptq.files import sha256
from ptq.model import load
from ptq.report import gate_files
from ptq.report.artifact import (
    float_source,
    is_integer,
    is_quantized,
    load_manifest,
    load_program,
)
from ptq.report.baseline import Baseline, Proofs, Speed, load_baseline
from ptq.report.benchmark import BenchOptions, bench
from ptq.report.compiled import is_compiled, open_file
from ptq.report.cpu import Cpu, this_cpu
from ptq.report.gate_files import Verdicts
from ptq.report.gates import (
    Gate,
    Limits,
    accuracy_gate,
    fidelity_gate,
    latency_gate,
    mismatch_gate,
    paired,
    proof_gates,
    size_gate,
)
from ptq.report.manifest import FileRecord
from ptq.report.outcomes import Outcomes, observe
from ptq.report.session import Batch, open_session
from ptq.report.summary import file_bytes, program_islands
from ptq.report.verification import LayerCheck, OutputCheck
from ptq.verify import VerifyOptions, verify_file

Show = Callable[[str, int, int | None], None]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RegressOptions:
    """How to measure.

    samples: which to judge on; labelled ones give accuracy. float_path: None is the float model
    that the manifest remembers. against: a model file to time against rather than the baseline's
    or the float one. verified: samples compared code by code with the reference.
    """

    samples: Samples
    limits: Limits = field(default_factory=Limits)
    float_path: Path | None = None
    against: Path | None = None
    verified: int = 8
    seconds: float = 10.0
    threads: int = 1


@dataclass(frozen=True)
class Regression:
    """A model against its baseline, gate by gate. now: what --update would write."""

    model: str
    baseline: str
    gates: tuple[Gate, ...]
    now: Baseline
    baseline_cpu: Cpu
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """No gate failed."""
        return all(gate.status != "failed" for gate in self.gates)

    @property
    def other_cpu(self) -> bool:
        """The baseline was measured on another kind of CPU."""
        return self.now.cpu != self.baseline_cpu

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known beside the gates."""
        if not self.other_cpu:
            return ()
        return (f"another CPU: the baseline is from {self.baseline_cpu}, this is {self.now.cpu}",)


def regress_file(
    model: Path, baseline: Path, options: RegressOptions, show: Show | None = None
) -> Regression:
    """Measure the model as the baseline was measured, and judge every difference.

    show: called with stage, done, total; an exception raised in it cancels the run.

    Raises:
        UsageError: no baseline, or other samples than the baseline's.
        ModelError: the model cannot be read or run.
    """
    show = show or _silent
    before = load_baseline(baseline)
    subject = _Subject(model, options)
    outcomes = subject.outcomes(show)
    paired(before, outcomes)
    now, limits = subject.baseline(baseline.parent, outcomes), options.limits
    gates = [
        accuracy_gate(before.outcomes, outcomes, limits),
        fidelity_gate(before.outcomes, outcomes, limits),
        _latency(subject, baseline, before, now.cpu, show),
        size_gate(before.size_bytes, now.size_bytes, limits),
    ]
    if now.proofs is not None:
        gates.append(subject.mismatches(show))
        gates += proof_gates(before.proofs or Proofs((), (), ()), now.proofs)
    return Regression(str(model), str(baseline), tuple(gates), now, before.cpu)


def make_baseline(
    model: Path, folder: Path, options: RegressOptions, show: Show | None = None
) -> Baseline:
    """Measure a model that is good enough, for a baseline file in `folder`.

    Raises:
        ModelError: the model cannot be read or run.
    """
    show = show or _silent
    subject = _Subject(model, options)
    speed = None if subject.float_model is None else subject.speed(subject.float_model, show)
    return subject.baseline(folder, subject.outcomes(show), speed)


class _Subject:
    """The model under test, with what the manifest knows of it."""

    def __init__(self, model: Path, options: RegressOptions) -> None:
        self.model = model
        self.options = options
        self.specs = float_inputs(model)
        self.float_model = options.float_path
        if self.float_model is None and is_quantized(model):
            self.float_model = float_source(model, load_manifest(model))
        if self.float_model is not None:
            load(self.float_model)  # checked before onnxruntime sees it
        self.samples = with_preprocess(options.samples, (model,))

    def outcomes(self, show: Show) -> Outcomes:
        """What the model does with every sample."""
        threads = 1 if is_compiled(self.model) else None  # a module's pool waits for every worker
        session, reference = open_file(self.model, name=self.model.name, threads=threads), None
        if self.float_model is not None:
            reference = open_session(self.float_model, name="float model")
        batches = self.samples.batches(self.specs)
        return observe(session, reference, batches, lambda n: show("evaluate", n, None))

    def speed(self, other: Path, show: Show) -> Speed:
        """Speed-up of the model over another one."""
        sessions = {
            role: open_file(path, name=role, threads=self.options.threads)
            for role, path in (("other", other), ("model", self.model))
        }
        found = bench(
            sessions,
            self._one_sample(),
            BenchOptions(
                seconds=self.options.seconds,
                threads=self.options.threads,
                confidence=1 - 2 * self.options.limits.alpha,
            ),
            lambda rounds: show("latency", rounds, None),
        )
        return Speed(found.speedups[1], found.speedup_intervals[1], self.options.threads)

    def _one_sample(self) -> Batch:
        return first_rows(next(self.samples.batches(self.specs))[0], self.specs, 1)

    def baseline(self, folder: Path, outcomes: Outcomes, speed: Speed | None = None) -> Baseline:
        """Everything a baseline holds, with what was measured already."""
        relative = os.path.relpath(self.model.resolve(), folder.resolve())
        record = FileRecord(relative, sha256(self.model), self.model.stat().st_size)
        return Baseline(
            record, _bytes(self.model), this_cpu(), outcomes, speed, _proofs(self.model)
        )

    def mismatches(self, show: Show) -> Gate:
        """The file against the integer reference, on a few samples."""
        samples = self.options.samples
        how = VerifyOptions(
            calib=samples.evaluation or samples.calib,
            samples=self.options.verified,
            preprocess=samples.preprocess,
            compare_float=False,
        )
        found = verify_file(self.model, how, lambda done, total: show("verify", done, total))
        checks: tuple[LayerCheck | OutputCheck, ...] = (*found.layers, *found.outputs)
        lines = (f"{c.name}: {c.mismatches} codes" for c in checks if c.mismatches)
        return mismatch_gate(found.mismatches, found.codes, tuple(lines))


def _bytes(model: Path) -> int:
    return model.stat().st_size if is_compiled(model) else file_bytes(model)


def _proofs(model: Path) -> Proofs | None:
    if not is_integer(model):
        return None
    program = load_program(model).program
    return Proofs(
        tuple(f"{i.name} ({i.op_type}): {i.reason}" for i in program_islands(program)),
        tuple(c.step for c in program.certificates if not c.exact),
        tuple(c.step for c in program.certificates if not c.pair_safe),
    )


def _latency(subject: _Subject, path: Path, before: Baseline, cpu: Cpu, show: Show) -> Gate:
    """Against the baseline's own model if its file is still there, else by way of the float one."""
    limits = subject.options.limits
    other = subject.options.against or _kept(path, before)
    if other is not None:
        float_inputs(other)
        return latency_gate(_inverse(subject.speed(other, show)), str(other), limits)
    if before.speed is None or subject.float_model is None:
        return Gate(
            "latency",
            "skipped",
            f"neither the baseline's model ({before.model.path}) nor a float model is there to "
            "time against: give --against or --float",
        )
    if before.cpu != cpu:
        return Gate(
            "latency",
            "skipped",
            f"the baseline was timed on {before.cpu}, this is {cpu}: give --against the baseline's "
            "model, or make a baseline here: --update",
        )
    if before.speed.threads != subject.options.threads:
        raise UsageError(
            f"--threads: got {subject.options.threads}; the baseline was timed with "
            f"{before.speed.threads}: give the same, or --update"
        )
    now = subject.speed(subject.float_model, show)
    low, high = before.speed.interval
    slowdown = Speed(
        before.speed.speedup / now.speedup, (low / now.interval[1], high / now.interval[0]), 1
    )
    against = "the baseline, by way of the float model"
    return latency_gate(replace(slowdown, threads=now.threads), against, limits)


def _inverse(speed: Speed) -> Speed:
    low, high = speed.interval
    return Speed(1 / speed.speedup, (1 / high, 1 / low), speed.threads)


def _kept(path: Path, before: Baseline) -> Path | None:
    """The baseline's model, if its file has not been replaced since."""
    model = path.parent / before.model.path
    return model if model.is_file() and sha256(model) == before.model.sha256 else None


def write_verdicts(
    found: Regression,
    *,
    junit: Path | None = None,
    sarif: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Write the gates as JUnit XML, SARIF 2.1.0 and Markdown, each where a path is given."""
    verdicts = Verdicts(found.model, found.baseline, found.gates, found.notes)
    forms = ((junit, gate_files.junit), (sarif, gate_files.sarif), (markdown, gate_files.markdown))
    for path, form in forms:
        if path is not None:
            path.write_text(form(verdicts), encoding="utf-8")


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


__all__ = ["RegressOptions", "Regression", "make_baseline", "regress_file", "write_verdicts"]
