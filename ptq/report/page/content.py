"""What a report says, before it is HTML, Markdown or JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ptq.calib_data import Lint
from ptq.report.benchmark import Benchmark
from ptq.report.comparison import Comparison
from ptq.report.rungs import Rung
from ptq.report.summary import CertificateSummary, IslandRow

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Bars:
    """A histogram with the levels of the grid that the values go to.

    counts: of equal bins from low to high. levels: where the grid has codes, in the same unit.
    unit: of the horizontal axis.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    levels: tuple[float, ...]
    unit: str


@dataclass(frozen=True)
class LayerRow:
    """One step of the integer program.

    grid: how its weight's codes lie, in words. weight_bytes: as stored. weight_sqnr_db: of the
    quantised weight; output_sqnr_db: of the step's output in the integer network against the float
    one, what came before included. None: not applicable, or not measured.
    """

    name: str
    op: str
    weight_bits: int | None
    input_bits: int | None
    output_bits: int | None
    grid: str
    weight_bytes: int
    weight_sqnr_db: float | None
    output_sqnr_db: float | None
    accumulator_bound: int | None
    exact: bool | None
    pair_safe: bool | None
    note: str
    weights: Bars | None = None
    outputs: Bars | None = None

    @property
    def drawn(self) -> bool:
        """There is a histogram to draw."""
        return self.weights is not None or self.outputs is not None


@dataclass(frozen=True)
class GraphNode:
    """One step in execution order. reads: indices of the steps that make what it reads.

    bits: of its weight, else of its output; None is float.
    """

    name: str
    op: str
    bits: int | None
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """One model of a Pareto front. this: it is the model of this report."""

    label: str
    size_bytes: float
    quality: float
    this: bool = False


@dataclass(frozen=True)
class Front:
    """Models of different sizes. quality: what `Point.quality` is, such as "SQNR, dB"."""

    quality: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Fact:
    """A line of the summary: the float model and the integer one."""

    label: str
    float: str
    integer: str


@dataclass(frozen=True)
class Page:
    """Everything a report says. provenance: label -> value (hashes, versions, recipe, seed).

    ladder: what each stage of quantising gained.
    """

    model: str
    precision: str
    target: str
    facts: tuple[Fact, ...]
    certificates: CertificateSummary
    layers: tuple[LayerRow, ...]
    islands: tuple[IslandRow, ...]
    graph: tuple[GraphNode, ...]
    lints: tuple[Lint, ...]
    provenance: dict[str, str]
    comparison: Comparison | None = None
    measured_on: str = ""
    latency: Benchmark | None = None
    front: Front | None = None
    ladder: tuple[Rung, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The page as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"
