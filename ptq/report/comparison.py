"""Two models on the same data: how near their outputs are, and how often each is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ptq.errors import CalibrationError
from ptq.report.metrics import Accuracy, Fidelity, Scores
from ptq.report.session import Batch, Session

Array = npt.NDArray[Any]
Labelled = tuple[Batch, Array | None]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """The second model against the first.

    outputs: output name -> nearness. first_top1, second_top1: accuracy, None without labels.
    """

    first: str
    second: str
    samples: int
    outputs: dict[str, Scores]
    first_top1: float | None = None
    second_top1: float | None = None
    schema_version: int = SCHEMA_VERSION


def compare(
    first: Session,
    second: Session,
    data: Iterable[Labelled],
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Run both on every batch. data: (float inputs by name, labels [N] or None).

    Accuracy is that of the first output. progress: called with the number of samples done.

    Raises:
        CalibrationError: the models' inputs or outputs do not correspond, or the data is empty.
    """
    pairs = _pair(first, second)
    fidelity = {name: Fidelity() for name in first.outputs}
    right = Accuracy(), Accuracy()
    samples = 0
    for batch, labels in data:
        x = first.predict(_renamed(batch, first))
        y = second.predict(_renamed(batch, second))
        for name, other in pairs:
            if x[name].shape != y[other].shape:
                raise CalibrationError(
                    f"output {name}: {first.name} gives {list(x[name].shape)}, {second.name} "
                    f"{list(y[other].shape)}; compare models of one network"
                )
            fidelity[name].add(x[name], y[other])
        if labels is not None:
            right[0].add(x[pairs[0][0]], labels)
            right[1].add(y[pairs[0][1]], labels)
        samples += max((len(a) for a in batch.values() if a.ndim), default=1)
        if progress is not None:
            progress(samples)
    if not samples:
        raise CalibrationError("no samples to compare on: give more data")
    return Comparison(
        first.name,
        second.name,
        samples,
        {name: scores.scores() for name, scores in fidelity.items()},
        right[0].top1,
        right[1].top1,
    )


def _pair(first: Session, second: Session) -> list[tuple[str, str]]:
    """Outputs by name if the names are the same, else by position."""
    if len(first.outputs) != len(second.outputs):
        raise CalibrationError(
            f"{first.name} has {len(first.outputs)} outputs, {second.name} {len(second.outputs)}; "
            "compare models of one network"
        )
    if set(first.outputs) == set(second.outputs):
        return [(name, name) for name in first.outputs]
    return list(zip(first.outputs, second.outputs, strict=True))


def _renamed(batch: Batch, session: Session) -> Batch:
    """The batch under the session's input names, which may differ if there is only one."""
    if len(batch) == 1 and len(session.inputs) == 1:
        return {session.inputs[0]: next(iter(batch.values()))}
    return batch
