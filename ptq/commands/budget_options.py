"""Options that choose precision by budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptq.amounts import milliseconds, operations, size

if TYPE_CHECKING:
    from ptq.mixed.budgets import Budgets


def _read(parse: Callable[[str], float]) -> Callable[..., float | None]:
    """A callback that reads an amount."""
    return lambda context, parameter, text: None if text is None else parse(text)


METRIC = click.option(
    "--metric",
    metavar="FILE.py:FUNCTION",
    help="Measures drops instead: function(predict) -> a fraction, where 1 is perfect.",
)
WORK = click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep scores, rounded weights and measured points here, and go on from them.",
)
BUDGETS = (
    click.option("--avg-bits", type=click.FloatRange(min=2, max=8), help="Of all weights, mixed."),
    click.option("--target-size", callback=_read(size), help="Of the file, such as 2MB."),
    click.option(
        "--target-bops", callback=_read(operations), help="Bit operations of a sample, as 1.5G."
    ),
    click.option(
        "--target-latency",
        callback=_read(milliseconds),
        help="Of one sample here, such as 3ms.",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0),
        help="Points of top-1 agreement with the float model; the smallest network within it.",
    ),
    METRIC,
    WORK,
)


@dataclass(frozen=True, kw_only=True)
class BudgetChoices:
    """What was asked for."""

    avg_bits: float | None
    target_size: float | None
    target_bops: float | None
    target_latency: float | None
    max_drop: float | None
    metric: str | None
    work: Path | None

    def budgets(self, compiled: str | None, sizes: Mapping[str, int]) -> Budgets:
        """The budgets, as numbers.

        compiled: the target that latency is of, if not onnxruntime. sizes: of its named axes.
        """
        from ptq.mixed.budgets import Budgets

        return Budgets(
            self.avg_bits,
            self.target_size,
            self.target_bops,
            self.target_latency,
            compiled,
            self.max_drop,
            self.metric,
            sizes,
        )

    def any(self) -> bool:
        """True if a budget was given."""
        given = (self.avg_bits, self.target_size, self.target_bops, self.target_latency)
        return self.max_drop is not None or any(value is not None for value in given)
