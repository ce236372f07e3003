"""What each stage of a run gained, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """What a stage came to on held-out calibration samples.

    kl: mean KL divergence of the output distributions in nats, None where no output is one.
    sqnr_db: of the float outputs. kept: the plan went on with it. seconds: its wall time.
    """

    name: str
    kl: float | None
    sqnr_db: float | None
    kept: bool
    seconds: float


COLUMNS = ("stage", "SQNR, dB", "gain, dB", "KL", "seconds", "")


def rung_rows(rungs: Sequence[Rung]) -> list[tuple[str, ...]]:
    """A row for each rung, with its gain over the last one that was kept."""
    rows: list[tuple[str, ...]] = []
    before: float | None = None
    for rung in rungs:
        gain = "" if before is None or rung.sqnr_db is None else f"{rung.sqnr_db - before:+.2f}"
        rows.append(
            (
                rung.name,
                "" if rung.sqnr_db is None else f"{rung.sqnr_db:.2f}",
                gain,
                "" if rung.kl is None else f"{rung.kl:.4f}",
                f"{rung.seconds:.1f}",
                "" if rung.kept else "no gain: left out",
            )
        )
        before = rung.sqnr_db if rung.kept else before
    return rows
