"""Charts as inline SVG. Colours are classes: the page's style sheet gives them, light and dark.

Text and numbers only: whatever comes from a model is escaped here, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ptq.report.benchmark import Benchmark
from ptq.report.console import megabytes
from ptq.report.page.content import Bars, Front

WIDTH, HEIGHT = 360, 110
_FLOOR = HEIGHT - 22
_MOST_TICKS = 33


def _svg(title: str, body: Sequence[Markup], height: int = HEIGHT) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(WIDTH, height, title, title, Markup("").join(body))


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _scale(low: float, high: float, value: float, start: float, stop: float) -> float:
    return start if high == low else start + (value - low) / (high - low) * (stop - start)


def histogram(bars: Bars, title: str) -> Markup:
    """Bars on a square-root axis (tails stay visible), and a tick at every level of the grid."""
    top = max(max(bars.counts, default=0), 1) ** 0.5
    step = WIDTH / max(len(bars.counts), 1)
    outline = [f"M0 {_FLOOR}"]
    for index, count in enumerate(bars.counts):
        y = _FLOOR - (_FLOOR - 8) * count**0.5 / top
        outline.append(f"V{y:.1f}H{(index + 1) * step:.1f}")
    outline.append(f"V{_FLOOR}Z")
    body = [Markup('<path class="bars" d="{}"/>').format("".join(outline))]
    inside = [x for x in bars.levels if bars.low <= x <= bars.high]
    places = [_scale(bars.low, bars.high, x, 0, WIDTH) for x in inside]
    if 1 < len(places) <= _MOST_TICKS:
        ticks = "".join(f"M{x:.1f} 4V{_FLOOR}" for x in places)
        body.append(Markup('<path class="levels" d="{}"/>').format(ticks))
    elif places:  # too many to tell apart: where they begin and end
        body.append(
            Markup('<rect class="span" x="{:.1f}" y="4" width="{:.1f}" height="{}"/>').format(
                places[0], places[-1] - places[0], _FLOOR - 4
            )
        )
    body += [
        _text(0, HEIGHT - 6, f"{bars.low:.3g}"),
        _text(WIDTH / 2, HEIGHT - 6, bars.unit, "middle"),
        _text(WIDTH, HEIGHT - 6, f"{bars.high:.3g}", "end"),
    ]
    return _svg(f"{title}: histogram with {len(bars.levels)} levels", body)


def latency(found: Benchmark) -> Markup:
    """The cumulative distribution of every model's latency, on a logarithmic axis."""
    low = min(timing.quantiles_ms[0] for timing in found.timings)
    high = max(timing.percentiles.get("99", timing.quantiles_ms[-1]) for timing in found.timings)
    body = []
    for index, timing in enumerate(found.timings):
        times = [min(max(ms, low), high) for ms in timing.quantiles_ms]
        xs = [_scale(np.log(low), np.log(high), float(np.log(ms)), 4, WIDTH - 4) for ms in times]
        ys = [_scale(0, len(times) - 1, i, _FLOOR, 8) for i in range(len(times))]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        kind = "float" if index == 0 else "integer"
        body.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, points))
        key = '<text class="{}" x="{}" y="{}" text-anchor="end">{}</text>'
        body.append(Markup(key).format(kind, WIDTH - 4, 44 + 14 * index, timing.name))
    body += [
        _text(0, HEIGHT - 6, f"{low:.3g} ms"),
        _text(WIDTH, HEIGHT - 6, f"{high:.3g} ms (99 %)", "end"),
    ]
    return _svg("latency: part of the runs that were faster", body)


def front(found: Front) -> Markup:
    """Quality against size; the models on the Pareto front are joined."""
    sizes = [point.size_bytes for point in found.points]
    values = [point.quality for point in found.points]
    best, joined = -np.inf, []
    body = []
    for point in sorted(found.points, key=lambda p: (p.size_bytes, -p.quality)):
        x = _scale(min(sizes), max(sizes), point.size_bytes, 40, WIDTH - 8)
        y = _scale(min(values), max(values), point.quality, _FLOOR - 6, 14)
        if point.quality > best:
            best = point.quality
            joined.append(f"{x:.1f},{y:.1f}")
        mark = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
        what = f"{point.label}: {point.size_bytes:.0f} bytes, {point.quality:.4g}"
        body.append(Markup(mark).format("this" if point.this else "point", x, y, 4, what))
    line = Markup('<polyline class="line integer" points="{}"/>').format(" ".join(joined))
    labels = [
        _text(0, 18, f"{max(values):.3g}"),
        _text(0, _FLOOR - 2, f"{min(values):.3g}"),
        _text(40, HEIGHT - 6, megabytes(int(min(sizes)))),
        _text(WIDTH, HEIGHT - 6, megabytes(int(max(sizes))), "end"),
        _text(WIDTH / 2 + 20, HEIGHT - 6, "size", "middle"),
    ]
    return _svg(f"{found.quality} against size", [line, *body, *labels])


def precision_class(bits: int | None) -> str:
    """The style class of a width."""
    return "bits-float" if bits is None else f"bits-{bits}"


def sparkline(bars: Bars, width: int = 24) -> str:
    """The histogram as a line of block characters, for plain text."""
    parts = np.array_split(np.sqrt(np.asarray(bars.counts, float)), min(width, len(bars.counts)))
    heights = [float(part.mean()) if len(part) else 0.0 for part in parts]
    top = max(heights) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(int(8 * h / top), 7)] for h in heights)


__all__ = ["front", "histogram", "latency", "precision_class", "sparkline"]
