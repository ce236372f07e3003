"""The gates of `ptq regress`: each compares one thing with the baseline and passes or fails.

A statistical gate fails when what is tolerated, and chance, do not explain the loss together: noise
alone fails no build, and a loss too small to matter fails none either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ptq.errors import UsageError
from ptq.report.baseline import Baseline, Proofs, Speed
from ptq.report.outcomes import Outcomes
from ptq.report.significance import mcnemar, noise_ratio, smallest_loss

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Limits:
    """What is tolerated.

    alpha: how often chance may fail an equivalent model, for each statistical gate.
    accuracy_loss: as a part of one. sqnr_loss_db: of the outputs against the float model.
    slowdown, growth: relative, 0.05 is 5 %.
    """

    alpha: float = 0.025
    accuracy_loss: float = 0.005
    sqnr_loss_db: float = 1.0
    slowdown: float = 0.05
    growth: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"--alpha: got {self.alpha}; wanted more than 0 and less than 0.5")


@dataclass(frozen=True)
class Gate:
    """One verdict.

    measured: the loss, in the unit of `limit`; None if skipped. bound: the smallest loss that
    the data leaves possible (the measured one where there is no chance in it).
    items: what is new and at fault, one line each.
    """

    name: str
    status: Status
    message: str
    measured: float | None = None
    bound: float | None = None
    limit: float | None = None
    items: tuple[str, ...] = ()


def _verdict(failed: bool) -> Status:
    return "failed" if failed else "passed"


def accuracy_gate(before: Outcomes, now: Outcomes, limits: Limits) -> Gate:
    """Exact McNemar test, on the samples that changed sides, of a loss beyond the tolerated one."""
    name = "agreement" if now.judge == "float" else "accuracy"
    if not before.right or not now.right:
        return Gate(name, "skipped", "no labels and no float model to judge the answers by")
    if before.judge != now.judge:
        return Gate(
            name,
            "skipped",
            f"the baseline was judged by {before.judge}, this run by {now.judge}: --update",
        )
    pairs = list(zip(before.right, now.right, strict=True))
    lost, gained = pairs.count(("1", "0")), pairs.count(("0", "1"))
    tolerated = limits.accuracy_loss * len(pairs)
    loss, p_value = (lost - gained) / len(pairs), mcnemar(lost, gained, tolerated)
    least = smallest_loss(len(pairs), tolerated, limits.alpha) / len(pairs)
    message = (
        f"{100 * (before.accuracy or 0):.2f} % before, {100 * (now.accuracy or 0):.2f} % now: "
        f"{lost} of {len(pairs)} samples lost, {gained} gained (by chance, if the loss is "
        f"{100 * limits.accuracy_loss:g} points or less: p = {p_value:.2g}); a loss below "
        f"{100 * least:.2g} points would not have failed"
    )
    failed = p_value <= limits.alpha
    return Gate(name, _verdict(failed), message, loss, loss, limits.accuracy_loss)


def fidelity_gate(before: Outcomes, now: Outcomes, limits: Limits) -> Gate:
    """Paired bootstrap of the output noise against the float model."""
    if not sum(before.noise) or not sum(now.noise):
        why = "no float model" if not now.noise else "no noise to compare with"
        return Gate("fidelity", "skipped", why)
    loss, bound = noise_ratio(np.asarray(before.noise), np.asarray(now.noise), limits.alpha)
    message = (
        f"output SQNR {before.sqnr_db:.2f} dB before, {now.sqnr_db:.2f} dB now: "
        f"{loss:+.2f} dB of noise, at least {bound:+.2f} dB at {100 * (1 - limits.alpha):g} %"
    )
    failed = bound > limits.sqnr_loss_db
    return Gate("fidelity", _verdict(failed), message, loss, bound, limits.sqnr_loss_db)


def latency_gate(slowdown: Speed, against: str, limits: Limits) -> Gate:
    """The interval of the time ratio now / before, minus one. slowdown: that ratio."""
    low, high = slowdown.interval
    message = (
        f"{slowdown.speedup:.3f} x the time of {against} "
        f"({low:.3f} to {high:.3f} at {100 * (1 - 2 * limits.alpha):g} %), "
        f"{slowdown.threads} threads, interleaved"
    )
    failed = low - 1 > limits.slowdown
    return Gate(
        "latency", _verdict(failed), message, slowdown.speedup - 1, low - 1, limits.slowdown
    )


def size_gate(before: int, now: int, limits: Limits) -> Gate:
    """The growth of the model's file and its external data."""
    growth = now / max(before, 1) - 1
    message = f"{before} bytes before, {now} now ({100 * growth:+.2f} %)"
    failed = now - before > limits.growth * before
    return Gate("size", _verdict(failed), message, growth, growth, limits.growth)


def mismatch_gate(mismatches: int, codes: int, where: tuple[str, ...]) -> Gate:
    """Codes of the target that differ from the integer reference; the bar is zero."""
    message = f"{mismatches} of {codes} codes differ from the integer reference"
    return Gate("mismatches", _verdict(mismatches > 0), message, mismatches, mismatches, 0, where)


def proof_gates(before: Proofs, now: Proofs) -> tuple[Gate, ...]:
    """Float islands and certificates: nothing may be worse than it was."""
    return (
        _new_ones("islands", "float islands", before.islands, now.islands),
        _new_ones("exactness", "requantisations not proved exact", before.unproved, now.unproved),
        _new_ones(
            "saturation",
            "steps that may saturate without VNNI",
            before.saturating,
            now.saturating,
        ),
    )


def _new_ones(name: str, what: str, before: tuple[str, ...], now: tuple[str, ...]) -> Gate:
    new = tuple(item for item in now if item not in set(before))
    message = f"{len(now)} {what}, {len(before)} before, {len(new)} of them new"
    return Gate(name, _verdict(bool(new)), message, len(new), len(new), 0, new)


def paired(before: Baseline, now: Outcomes) -> None:
    """Fail if the two were not measured on the same samples.

    Raises:
        UsageError: other samples, another order, or another preprocessing.
    """
    if before.outcomes.digest != now.digest:
        raise UsageError(
            f"the samples are not those of the baseline (its {before.outcomes.samples}, here "
            f"{now.samples}): give the same data and preprocess, or make a new baseline: --update"
        )
