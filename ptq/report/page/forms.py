"""The three forms of a page: HTML (one file, offline, readable without scripts), Markdown, JSON."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ptq.report.console import megabytes
from ptq.report.page import charts
from ptq.report.page.content import Page
from ptq.report.page.graph_chart import graph
from ptq.report.plain_markdown import literal
from ptq.report.print_benchmark import surroundings_line
from ptq.report.rungs import COLUMNS, Rung, rung_rows

if TYPE_CHECKING:
    from jinja2 import Environment

_CLOCK = COLUMNS.index("seconds")  # no manifest holds it
_STAGES = (*COLUMNS[:_CLOCK], "note")  # a head without text is no head to a screen reader
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMG]?B|dB|ms|x)(?:\W|$))")
_WIDTHS = (*range(2, 9), "float")


def to_html(page: Page) -> str:
    """One self-contained file: no request leaves it, and its script is only comfort.

    Everything that comes from the model is escaped by the template engine; the page's own policy
    forbids every script but ours, should something slip through.
    """
    environment = _environment(escape=True)
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = environment.get_template("page.css.j2").render(widths=_WIDTHS)
    return environment.get_template("page.html.j2").render(
        page=page, stages=_STAGES, style=Markup(style), script=Markup(script), script_hash=digest
    )  # both are ours, not the model's


def to_markdown(page: Page) -> str:
    """The same as tables; histograms as lines of block characters."""
    return _environment(escape=False).get_template("page.md.j2").render(page=page, stages=_STAGES)


FORMS: dict[str, Callable[[Page], str]] = {
    ".html": to_html,
    ".md": to_markdown,
    ".json": Page.to_json,
}
"""By the suffix of the file."""


def _text(name: str) -> str:
    return (resources.files("ptq.report.page") / name).read_text(encoding="utf-8")


def _environment(*, escape: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ptq.report", "page"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def _verdict(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _units(text: str) -> str:
    """A number and its unit on one line."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", text)


def _stages(ladder: Sequence[Rung]) -> list[tuple[str, ...]]:
    return [(*row[:_CLOCK], *row[_CLOCK + 1 :]) for row in rung_rows(ladder)]


def _surroundings(latency: Any) -> str:
    return surroundings_line(latency.surroundings)


_FILTERS: dict[str, Callable[..., Any]] = {
    "cell": literal,
    "decibel": _decibel,
    "front": charts.front,
    "graph": graph,
    "histogram": charts.histogram,
    "latency": charts.latency,
    "rungs": _stages,
    "precision_class": charts.precision_class,
    "size": megabytes,
    "sparkline": charts.sparkline,
    "surroundings": _surroundings,
    "thousands": "{:,}".format,
    "units": _units,
    "verdict": _verdict,
}
