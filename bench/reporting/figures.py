"""Figures: panels of points and curves as SVG, drawn by Vega-Lite through altair and vl-convert.

The bytes depend on the figure alone: sizes and places of titles are set, so that no font of this
machine is measured. A mark's `aria-label` says what it is; its first word is the method's name.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from bench.core.cell import REFERENCE
from bench.core.tables import printable
from bench.reporting import chart
from bench.reporting.labels import LINE, Label, Spot, apart, beside
from bench.reporting.looks import INK, PAPER, look
from bench.reporting.scale import Scale

Rows = list[dict[str, Any]]
"""What the marks of one layer show."""

WIDTH = 400
"""Pixels of a figure: a phone shows it as it is, and a desk shows two or three side by side."""
LEFT, TOP, RIGHT, BOTTOM = 42, 28, 14, 42
"""Pixels around a panel's axes."""
NAMES = 116
"""Pixels at the right of curves for their names."""
LOW, HIGH = 196, 2 * 196 + TOP + BOTTOM
"""Least pixels of the axes of points, and of curves: as high as two panels of points."""


@dataclass(frozen=True)
class Point:
    """A row's place: `x` and `y` as printed, `sd` of y over seeds, a line of `note` on hover.

    Labels of points on the `front` are placed first.
    """

    x: float
    y: float
    sd: float
    note: str
    front: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one method; `name`, if any, stands beside them; `style` below 0 is the reference.

    Attributes:
        kind: `mark`, `hollow` for patterns other than unstructured, `cross` for unverified ones.
    """

    name: str
    style: int
    kind: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x: what is on its axis.
        curves: points of a series are joined.
        log_x: by its logarithm; zeros stand apart.
        front: corners of the Pareto frontier, by x; empty for curves.
    """

    x: str
    series: tuple[Series, ...]
    curves: bool = False
    log_x: bool = False
    front: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels below each other that share the y axis. Up is better.

    Attributes:
        name: tells the figures of one board apart, as a part of a file's name.
        y: what is on the axis.
        falling: the axis of a metric that should be low is turned.
        reference: y of the dense model, a line across.
        note: what is not drawn and why.
    """

    name: str
    y: str
    panels: tuple[Panel, ...]
    falling: bool = False
    log_y: bool = False
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure as an `svg` element, and a line that says what is on its axes."""

    name: str
    about: str
    svg: str


def draw(figure: Figure) -> Drawing:
    """Draws the panels of a figure, and its note below them."""
    body, top = [], 0
    for panel in figure.panels:
        drawn, height = _panel(figure, panel)
        body.append(f'<g transform="translate(0,{top})">{drawn}</g>')
        top += height
    top += 6 if figure.note else 0
    for line in textwrap.wrap(_cut(figure.note, 240), 60):
        words = f'font-family="sans-serif" font-size="11" fill="{INK}"'
        body.append(f'<text x="4" y="{top + 8}" {words}>{escape(line)}</text>')
        top += LINE + 2
    top += 4
    about = _cut(f"{figure.y} against {' and '.join(p.x for p in figure.panels)}", 200)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{WIDTH}" height="{top}" role="img" aria-label={quoteattr(about)}>'
    )
    ground = f'<rect width="{WIDTH}" height="{top}" fill="{PAPER}"/>'
    return Drawing(figure.name, about, "\n".join([head, ground, *body, "</svg>"]))


def _panel(figure: Figure, panel: Panel) -> tuple[str, int]:
    """Returns the elements of a panel, and its height."""
    import vl_convert  # its JavaScript engine starts with the first figure, which takes a second

    points = [q for p in figure.panels for s in p.series for q in s.points]
    ys = [end for q in points for end in (q.y - q.sd, q.y + q.sd, q.y)]
    ys = [y for y in ys if y > 0 or not figure.log_y]
    ys += [] if figure.reference is None else [figure.reference]
    xs = [q.x for s in panel.series for q in s.points]
    width = WIDTH - LEFT - (NAMES if panel.curves else RIGHT)
    # A line for every name: methods of one cost stand above each other.
    height = max(HIGH if panel.curves else LOW, LINE * (len(panel.series) + 1))
    x = Scale(xs, width, panel.log_x, inset=12)
    y = Scale(ys, height, figure.log_y, inset=10, turned=not figure.falling)
    rows = {"points": _points(panel, y), "across": []}
    if figure.reference is not None:
        at = y(figure.reference)
        rows["across"] = [{"x": 0, "y": at, "x2": width, "y2": at}]
    rows |= _at_ends(figure, panel, x, y) if panel.curves else _beside(panel, x, y)
    drawn = vl_convert.vegalite_to_svg(_chart(figure, panel, x, y) | {"datasets": rows})
    inner = drawn.partition(">")[2].rpartition("</svg>")[0]
    return _PLACES.sub(_rounded, inner), TOP + height + BOTTOM


def _at_ends(figure: Figure, panel: Panel, x: Scale, y: Scale) -> dict[str, Rows]:
    """Returns the names of curves, at the right or near a curve that ends early."""
    late = [s for s in panel.series if s.name and x(s.points[-1].x) > 0.6 * x.length]
    wanted = [(y(s.points[-1].y), x(s.points[-1].x), s) for s in late]
    if figure.reference is not None:
        wanted.append((y(figure.reference), x.length, Series(REFERENCE, -1, "mark", ())))
    wanted.sort(key=lambda w: (w[0], w[2].name))
    places = apart([at for at, _, _ in wanted], y.length)
    leads, ends, names = [], [], []
    for (at, end, s), place in zip(wanted, places, strict=True):
        about = {"method": _method(s), "about": _cut(s.name, 60), **look(s.style, s.kind)}
        leads.append({"x": end + 5, "y": at, "x2": x.length + 10, "y2": place, **about})
        ends.append({"x": x.length + 16, "y": place, **about})
        names.append({"x": x.length + 24, "y": place, "text": _cut(s.name, 14)})
    spots = [
        Spot(_cut(s.name, 20) if s not in late and q is s.points[-1] else "", x(q.x), y(q.y))
        for s in panel.series
        for q in s.points
    ]
    owners = [s for s in panel.series for _ in s.points]
    lines = [at for s in panel.series for at in _along([(x(q.x), y(q.y)) for q in s.points])]
    labels = _words(beside(spots, x.length, y.length, lines), owners)
    labels["words"] += names
    labels["leads"] += leads
    return {**labels, "ends": ends}


def _beside(panel: Panel, x: Scale, y: Scale) -> dict[str, Rows]:
    """Returns the frontier's steps and the labels beside points."""
    steps = [(x(a), y(b)) for a, b in panel.front]
    steps += [(x.length, steps[-1][1])] if steps else []
    corners = [at for (a, b), (c, d) in pairwise(steps)
               for at in ((a, b), (c, b), (c, d))]  # fmt: skip
    owners = [s for s in panel.series for _ in s.points]
    points = [q for s in panel.series for q in s.points]
    spots = [
        Spot(_cut(s.name, 24), x(q.x), y(q.y), q.front) for s, q in zip(owners, points, strict=True)
    ]
    bars = [_along([(x(q.x), y(max(q.y - q.sd, y.low))), (x(q.x), y(q.y + q.sd))]) for q in points]
    lines = [*_along(corners), *(at for bar in bars for at in bar)]
    rows = _words(beside(spots, x.length, y.length, lines), owners)
    return {"steps": [{"x": a, "y": b} for a, b in steps], **rows}


def _words(labels: Sequence[Label | None], owners: Sequence[Series]) -> dict[str, Rows]:
    """Returns the rows of labels, and of the lines that lead to them."""
    rows: dict[str, Rows] = {"words": [], "words left": [], "leads": []}
    for label, s in zip(labels, owners, strict=True):
        if label is None:
            continue
        at = {"x": label.x, "y": label.y, "text": label.text}
        rows["words left" if label.left else "words"].append(at)
        if label.lead:
            ends = dict(zip(("x", "y", "x2", "y2"), label.lead, strict=True))
            rows["leads"].append({**ends, "method": _method(s), **look(s.style, s.kind)})
    return rows


def _along(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns points some pixels from each other along a line."""
    found = []
    for (a, b), (c, d) in pairwise(corners):
        steps = max(1, int(max(abs(c - a), abs(d - b)) // 6))
        found += [(a + (c - a) * i / steps, b + (d - b) * i / steps) for i in range(steps + 1)]
    return found


def _chart(figure: Figure, panel: Panel, x: Scale, y: Scale) -> dict[str, Any]:
    """Returns the Vega-Lite chart of a panel, without its rows."""

    def axis(at: Scale, title: str, **more: Any) -> dict[str, Any]:
        more |= {"values": at.ticks()} if at.log else {"tickCount": 6}
        number = ".3~s" if at.high >= 1000 else ".6~g"
        return {"scale": at.vega(), "axis": {"title": title, "format": number, **more}}

    below = {"titleX": x.length / 2, "titleY": 33, "grid": False}
    above = {"titleX": 4 - LEFT, "titleY": 10 - TOP, "titleAngle": 0, "titleAlign": "left"}
    made = deepcopy(chart.template(panel.curves))
    points = next(layer for layer in made["layer"] if layer["mark"]["type"] == "point")
    points["encoding"]["x"] |= axis(x, _cut(panel.x, 52), **below)
    points["encoding"]["y"] |= axis(y, _cut(figure.y, 52), **above)
    padding = {"left": LEFT, "top": TOP, "right": WIDTH - LEFT - x.length, "bottom": BOTTOM}
    return made | {"width": x.length, "height": y.length, "padding": padding}


def _points(panel: Panel, y: Scale) -> Rows:
    """Returns a row for each point: its place, its spread inside the axis, its look."""
    return [
        {
            "x": q.x, "y": q.y, "low": max(q.y - q.sd, y.low), "high": q.y + q.sd,
            "series": i, "about": _cut(q.note, 200), "method": q.note.split(" ")[0],
            **look(s.style, s.kind),
        }
        for i, s in enumerate(panel.series)
        for q in s.points
    ]  # fmt: skip


def _method(s: Series) -> str:
    """Returns the first word of a series' marks."""
    return (s.points[0].note if s.points else s.name).split(" ")[0]


_PLACES = re.compile(r' (?:d|transform|x2|y2)="[^"]*"')
_DECIMALS = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def _rounded(places: re.Match[str]) -> str:
    """Returns pixels with one decimal: the last ones of sixteen may differ between machines."""
    return _DECIMALS.sub(lambda number: f"{round(float(number[0]), 1):g}", places[0])


def _cut(value: str, limit: int) -> str:
    """Returns foreign text on one line, cut where it is long."""
    clean = printable(value)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
