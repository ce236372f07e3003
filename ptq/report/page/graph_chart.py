"""The integer program as a picture: one row a step in execution order, arcs for what is read later.

A column of rows stays readable on a phone, where a layered drawing of the graph would not.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ptq.report.page.charts import WIDTH, precision_class
from ptq.report.page.content import GraphNode

_ROW, _LANE, _BOX, _LANES = 20, 9, 12, 8
_LONGEST = 34


def graph(nodes: Sequence[GraphNode]) -> Markup:
    """Rows with a box in the colour of the precision, and its width in bits in words beside it."""
    arcs = _arcs(nodes)
    left = _LANE * (min(_LANES, max((lane for *_, lane in arcs), default=-1) + 1) + 1)
    body = [_arc(start, stop, lane, left) for start, stop, lane in arcs]
    for index, node in enumerate(nodes):
        if index - 1 in node.reads:
            line = '<path class="edge" d="M{} {}v{}"/>'
            body.append(Markup(line).format(left + _BOX / 2, _y(index - 1), _ROW))
    body += [_row(index, node, left) for index, node in enumerate(nodes)]
    height = _ROW * len(nodes) + 4
    return Markup(
        '<svg class="graph" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, height, f"graph of {len(nodes)} steps", Markup("").join(body))


def _y(index: int) -> float:
    return 2 + _ROW * index + _ROW / 2


def _row(index: int, node: GraphNode, left: int) -> Markup:
    y = _y(index)
    name = node.name if len(node.name) <= _LONGEST else f"…{node.name[-_LONGEST:]}"
    width = "float" if node.bits is None else f"{node.bits} bits"
    row = (
        '<g><title>{}</title><rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>'
        '<text x="{}" y="{}">{} {}</text><text x="{}" y="{}" text-anchor="end">{}</text></g>'
    )
    return Markup(row).format(
        f"{node.name} ({node.op})", precision_class(node.bits), left, y - _BOX / 2, _BOX, _BOX,
        left + _BOX + 6, y + 4, node.op, name, WIDTH, y + 4, width,
    )  # fmt: skip


def _arcs(nodes: Sequence[GraphNode]) -> list[tuple[int, int, int]]:
    """(from, to, lane) of every edge that skips a row; lanes keep arcs apart where they overlap."""
    free: list[int] = []  # the row at which each lane is free again
    found = []
    edges = {(start, stop) for stop, node in enumerate(nodes) for start in node.reads}
    for start, stop in sorted(edges):
        if stop - start < 2:
            continue
        lane = next((i for i, row in enumerate(free) if row <= start), len(free))
        free[lane : lane + 1] = [stop]
        found.append((start, stop, lane))
    return found


def _arc(start: int, stop: int, lane: int, left: int) -> Markup:
    x = left - _LANE * (min(lane, _LANES - 1) + 1)
    turn = min(_LANE * (min(lane, _LANES - 1) + 1), _ROW / 2)
    return Markup('<path class="edge" d="M{} {}C{} {} {} {} {} {}V{}C{} {} {} {} {} {}"/>').format(
        left, _y(start), x, _y(start), x, _y(start), x, _y(start) + turn,
        _y(stop) - turn, x, _y(stop), x, _y(stop), left, _y(stop),
    )  # fmt: skip
