"""One grid for the tensors around layers that share a weight, so that they can share its codes.

The scales of a weight follow from the grids of its layer's input and output, because multipliers
are short; layers with equal grids have equal scales, and their weight is stored once. Unrolled
steps and tied layers see much the same values, so a grid for all of them costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptq.histogram import Histogram
from ptq.integer.units import Outline, Unit
from ptq.integer.weights import weight_key

NEAR = 2.0
"""Tensors are tied to a wider one that reaches at most so many times as far: a bit at worst."""


def tie_layers(outline: Outline, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """The histograms, one of all values for tensors that are tied.

    Inputs are tied with inputs and outputs with outputs, where they have the same width and limits.
    """
    tied = dict(histograms)
    for units in _sharers(outline):
        for names in ([u.inputs[0] for u in units], [u.output for u in units]):
            for group in _alike(outline, (outline.site(name) for name in names), tied):
                _merge(group, tied)
    return tied


def _sharers(outline: Outline) -> list[list[Unit]]:
    found: dict[object, list[Unit]] = {}
    for unit in outline.weighted:
        found.setdefault(weight_key(unit), []).append(unit)
    return [units for units in found.values() if len(units) > 1]


def _alike(
    outline: Outline, names: Iterable[str], histograms: Mapping[str, Histogram]
) -> list[list[str]]:
    """Sites of one width and limits whose ranges are near to each other's."""
    kinds: dict[object, list[str]] = {}
    for name in dict.fromkeys(names):
        site = outline.sites[name]
        if name in histograms and not site.fixed:
            kinds.setdefault((site.bits, site.limits, site.source), []).append(name)
    groups = []
    for group in kinds.values():
        left = sorted(group, key=lambda name: -_reach(histograms[name]))
        while left:
            widest = _reach(histograms[left[0]])
            near = [name for name in left if NEAR * _reach(histograms[name]) >= widest]
            groups.append(near)
            left = left[len(near) :]
    return [group for group in groups if len(group) > 1]


def _reach(histogram: Histogram) -> float:
    return max(histogram.max, 0.0) - min(histogram.min, 0.0)


def _merge(group: list[str], histograms: dict[str, Histogram]) -> None:
    """Give a group, and whatever its members are tied to already, one histogram."""
    known = {id(histograms[name]) for name in group}
    members = [name for name, h in histograms.items() if id(h) in known]
    merged = Histogram()
    for histogram in {id(histograms[name]): histograms[name] for name in members}.values():
        merged.merge(histogram)
    histograms |= dict.fromkeys(members, merged)
