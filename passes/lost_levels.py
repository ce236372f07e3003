"""Say which operands of a joined result have hardly any of its levels.

A detector that joins boxes of hundreds of pixels and scores below one gives codes of one grid,
whose step is larger than any score. Only codes at the boundary have the problem: floats are joined
after each operand's own grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from ptq.histogram import Histogram
from ptq.integer.units import Outline
from ptq.plan import ActivationPlan

FEWEST = 16
"""Levels over an operand's range: what 4 bits have."""

_LOG = logging.getLogger("ptq")


def warn_of_lost_levels(
    outline: Outline,
    outputs: Iterable[str],
    chosen: Mapping[str, ActivationPlan],
    histograms: Mapping[str, Histogram],
) -> None:
    """Log a warning for every Concat on the way to an output that has such operands."""
    reached = {outline.site(name) for name in outputs}
    for unit in reversed(outline.units):
        if unit.kind != "concat" or outline.site(unit.output) not in reached:
            continue
        reached |= {outline.site(name) for name in unit.inputs}
        step = float(chosen[outline.site(unit.output)].scale)
        lost = {
            name: levels
            for name, span in _spans(outline, unit.inputs, histograms)
            if 0 < (levels := span / step) < FEWEST
        }
        if lost:
            _LOG.warning(
                "%s: joins %s, with one grid for all (a step is %.3g); give --io float, where each "
                "keeps its own, or export the model with an output for each",
                unit.name,
                ", ".join(f"{name} ({levels:.1f} levels)" for name, levels in lost.items()),
                step,
            )


def _spans(
    outline: Outline, names: Iterable[str], histograms: Mapping[str, Histogram]
) -> Iterator[tuple[str, float]]:
    """Width of the range of each tensor, with zero; 1 of softmaxes, which have no histogram."""
    for name in names:
        site = outline.sites[outline.site(name)]
        histogram = histograms.get(site.name)
        if site.fixed:
            yield name, 1.0
        elif histogram is not None:
            yield name, max(histogram.max, 0.0) - min(histogram.min, 0.0)
