"""Report: what a quantised model consists of, what it costs, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec
import onnx_ir as ir

from ptq.calib_data import Lint, Preprocess
from ptq.integer.flow import reads, writes
from ptq.integer.outline import Outline
from ptq.integer.program import Apply, Certificate, Dequantize, Program, Quantize, Ref, Step
from ptq.plan import Plan
from ptq.recipe import Recipe
from ptq.report.benchmark import Benchmark
from ptq.report.comparison import Comparison
from ptq.report.flow import title
from ptq.report.rungs import Rung
from ptq.report.session import LARGEST_PROTO_BYTES, size_bytes

SCHEMA_VERSION = 1
_CONTAINER_BITS = 8
INT32_BITS = 32


class Deployed(Protocol):
    """A model that was made from a float one, and how."""

    @property
    def model(self) -> ir.Model:
        """The emitted model."""

    @property
    def float_model(self) -> ir.Model:
        """The prepared float model."""

    @property
    def recipe(self) -> Recipe:
        """The choices of the run."""

    @property
    def samples(self) -> int:
        """Calibration samples that were read."""

    @property
    def calib(self) -> str | None:
        """Where the samples came from, if it was a path."""

    @property
    def preprocess(self) -> Preprocess | None:
        """What was done to 8-bit pixels."""

    @property
    def lints(self) -> tuple[Lint, ...]:
        """What is odd about them."""


class Quantized(Deployed, Protocol):
    """What `ptq.quantize` returns, as far as a report needs it."""

    @property
    def outline(self) -> Outline:
        """What became integer, and what did not."""

    @property
    def program(self) -> Program:
        """The integer program."""

    @property
    def plan(self) -> Plan:
        """The grids."""

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """What each stage gained."""


@dataclass(frozen=True)
class Layer:
    """One step of the integer program.

    weight_bits: width of a stored weight code, None without weights.
    input_bits, output_bits: widths of the activation codes (None where the value is raw).
    accumulator_bound, accumulator_bits, exact, pair_safe, note: its certificate, if it has one.
    """

    name: str
    op: str
    weight_bits: int | None
    input_bits: int | None
    output_bits: int | None
    accumulator_bound: int | None = None
    accumulator_bits: int | None = None
    exact: bool | None = None
    pair_safe: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class IslandRow:
    """A node that stays float, and why."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class CertificateSummary:
    """How many certificates there are and hold, and the largest bound of an int32 accumulator."""

    steps: int
    exact: int
    pair_safe: int
    largest_accumulator: int


@dataclass(frozen=True)
class Report:
    """What `ptq quantize` prints; `to_json` is what it prints with --json.

    float_bytes: of the model as given (its file and external data), else as prepared.
    quantized_bytes: of the emitted model.
    group_size: inputs that share a scale where weights alone were quantised, else None; `layers`
        are those then, and `islands` the other nodes with weights.
    ladder: what each stage gained on held-out calibration samples.
    measured_on: which data `comparison` was measured on, or "".
    """

    model: str
    precision: str
    target: str
    io: str
    float_bytes: int
    quantized_bytes: int
    samples: int
    layers: tuple[Layer, ...]
    islands: tuple[IslandRow, ...]
    certificates: CertificateSummary
    lints: tuple[Lint, ...] = ()
    ladder: tuple[Rung, ...] = ()
    measured_on: str = ""
    comparison: Comparison | None = None
    latency: Benchmark | None = None
    group_size: int | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The report as JSON; what was not measured is null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def make_report(result: Quantized, source: Path | None = None) -> Report:
    """The report of a result before anything is measured. source: the float model's file."""
    program, recipe = result.program, result.recipe
    return Report(
        model=source.name if source is not None else str(result.float_model.graph.name or "model"),
        precision=recipe.precision,
        target=recipe.target,
        io=recipe.io,
        float_bytes=file_bytes(source) if source is not None else model_bytes(result.float_model),
        quantized_bytes=model_bytes(result.model),
        samples=result.samples,
        layers=layers(program),
        islands=island_rows(result.outline),
        certificates=summarise(program.certificates),
        lints=result.lints,
        ladder=result.ladder,
    )


def layers(program: Program) -> tuple[Layer, ...]:
    """One row for every step but the boundary's and shape arithmetic."""
    certificates = {c.step: c for c in program.certificates}
    return tuple(
        _layer(step, program, certificates.get(step.name))
        for step in program.steps
        if not isinstance(step, Quantize | Dequantize) and any(r.codes for r in writes(step))
    )


def _layer(step: Step, program: Program, certificate: Certificate | None) -> Layer:
    stored = getattr(step, "stored", None)
    weight = getattr(step, "weight", None)
    bits = stored.grid.bits if stored is not None else _CONTAINER_BITS
    row = Layer(
        name=step.name,
        op=title(step),
        weight_bits=None if weight is None else bits,
        input_bits=_bits(reads(step), program),
        output_bits=_bits(writes(step), program),
    )
    if certificate is None:
        return row
    return replace(
        row,
        accumulator_bound=certificate.accumulator_bound,
        accumulator_bits=certificate.accumulator_bits,
        exact=certificate.exact,
        pair_safe=certificate.pair_safe,
        note=certificate.note,
    )


def _bits(refs: tuple[Ref, ...], program: Program) -> int | None:
    widths = [program.codes[ref.name].grid.bits for ref in refs if ref.name in program.codes]
    return min(widths) if widths else None


def island_rows(outline: Outline) -> tuple[IslandRow, ...]:
    """The float islands with their reasons."""
    return tuple(IslandRow(i.name, i.op_type, i.reason or "") for i in outline.islands)


def program_islands(program: Program) -> tuple[IslandRow, ...]:
    """The same, from the program alone."""
    steps = [step for step in program.steps if isinstance(step, Apply)]
    return tuple(IslandRow(s.name, s.op_type, s.island) for s in steps if s.island is not None)


def summarise(certificates: tuple[Certificate, ...]) -> CertificateSummary:
    """Counts over all certificates."""
    return CertificateSummary(
        steps=len(certificates),
        exact=sum(c.exact for c in certificates),
        pair_safe=sum(c.pair_safe for c in certificates),
        largest_accumulator=largest_int32(certificates),
    )


def largest_int32(proved: Iterable[Certificate | Layer]) -> int:
    """The largest bound of an int32 accumulator; 0 if there is none."""
    bounds = (p.accumulator_bound or 0 for p in proved if p.accumulator_bits == INT32_BITS)
    return max(bounds, default=0)


def model_bytes(model: ir.Model) -> int:
    """Bytes of the model as a file; of its weights alone where a file needs external data."""
    weights = size_bytes(model)
    if weights > LARGEST_PROTO_BYTES:
        return weights
    tensors = [value.const_value for value in model.graph.initializers.values()]
    outside = sum(t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor))
    return outside + int(ir.to_proto(model).ByteSize())


def file_bytes(path: Path) -> int:
    """Bytes of a model file and of the external data that it names."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    proto = onnx.load(path, load_external_data=False)
    infos = [ExternalDataInfo(t) for t in proto.graph.initializer if uses_external_data(t)]
    data = {info.location for info in infos}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in data)
