"""What `ptq debug` finds: per layer where the loss comes from, why, and what repairs it."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.debug.network import Loss

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Suspect:
    """One layer, or an activation that no layer with a weight reads.

    weight_bits, activation_bits: of its weight, and of the codes it reads.
    output_sqnr_db: of its output in the integer network, with all that came before.
    alone: the loss when only this layer is quantised; weight_alone, activation_alone: only that of
    it. without: the loss when everything but this layer is quantised.
    blame: what of it loses more alone. causes: why, in words.
    """

    name: str
    op: str
    weight_bits: int | None
    activation_bits: int | None
    output_sqnr_db: float | None
    alone: Loss
    weight_alone: Loss | None
    activation_alone: Loss | None
    without: Loss
    blame: str
    causes: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A model as it is deployed. losses are on the data that `Repair.measured_on` names."""

    loss: Loss
    top1: float | None
    size_bytes: int


@dataclass(frozen=True)
class Repair:
    """What applying the precision map gave on integers.

    predicted: the loss that the simulation expects with it. before, after: measured on integers.
    regained: part of the loss that it takes away, of Loss.amount.
    """

    predicted: Loss
    before: Measured
    after: Measured
    float_top1: float | None
    measured_on: str
    samples: int

    @property
    def regained(self) -> float:
        """1 is all of it."""
        before = self.before.loss.amount
        return 1 - self.after.loss.amount / before if before else 0.0

    @property
    def growth(self) -> float:
        """Of the file, relative."""
        return self.after.size_bytes / self.before.size_bytes - 1


@dataclass(frozen=True)
class Diagnosis:
    """Suspects, the worst first (by what they lose alone). total: everything quantised.

    precision_map: the repair, {} if there is none. repair: what it gave, if it was applied.
    """

    model: str
    samples: int
    total: Loss
    suspects: tuple[Suspect, ...]
    precision_map: dict[str, str]
    repair: Repair | None = None
    schema_version: int = SCHEMA_VERSION
