"""Figures: panels of points and curves as SVG, drawn by Vega-Lite through altair and vl-convert.

The bytes depend on the panel alone: sizes and places of titles are set, so that no font of this
machine is measured. A mark's `aria-label` says what it is; its first word is the method's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from bench.core.cell import REFERENCE
from bench.core.tables import printable
from bench.reporting.labels import LINE, Label, Spot, apart, beside
from bench.reporting.scale import Scale

Rows = list[dict[str, Any]]
"""What the marks of one layer show."""

WIDTH = 400
LEFT, TOP, RIGHT, BOTTOM = 50, 28, 20, 42
"""Pixels of a panel's width, and those around its axes; names of curves take more at the right."""

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
"""Okabe and Ito's colours, which the colour-blind tell apart, without yellow and black."""
SHAPES = ("circle", "square", "triangle-up", "diamond")
DASHES = ((1, 0), (7, 3), (2, 2), (8, 2, 2, 2))
"""A method's colour and shape (with its line's dashes) are those of its number."""
INK, SOFT, RULE = "#1b1b1b", "#5c5c5c", "#dcdcdc"
STAR = "M0-1.5L.4-.5L1.5-.5L.6.2L.9 1.3L0 .6L-.9 1.3L-.6.2L-1.5-.5L-.4-.5Z"
CROSS = "M-1-1L1 1M1-1L-1 1"

_PLACES = re.compile(r' (?:d|transform|x2|y2)="[^"]*"')
_DECIMALS = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@dataclass(frozen=True)
class Point:
    """A row's place: `x` and `y` as printed, `sd` of y over seeds, a line of `note` on hover.

    `label` stands beside the point, if there is room; labels of the `front` are placed first.
    """

    x: float
    y: float
    sd: float
    note: str
    label: str = ""
    front: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one method: `name` beside the end of its curve; `style` below 0 is the reference.

    Attributes:
        kind: `mark`, `hollow` for patterns other than unstructured, `cross` for unverified ones.
    """

    name: str
    style: int
    kind: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Up is better: `falling` turns the axis of a metric that should be low.

    Attributes:
        x, y, where: what is on the axes, and the machine that it was measured on.
        curves: points of a series are joined and named at the right.
        front: corners of the Pareto frontier, by x; empty for curves.
        reference: y of the dense model, a line across curves.
    """

    x: str
    y: str
    where: str
    series: tuple[Series, ...]
    curves: bool = False
    log_x: bool = False
    log_y: bool = False
    falling: bool = False
    front: tuple[tuple[float, float], ...] = ()
    reference: float | None = None


@dataclass(frozen=True)
class Drawing:
    """A panel as an `svg` element, and its height in pixels."""

    svg: str
    height: int


def sheet(drawings: Sequence[Drawing], title: str) -> str:
    """Returns a file of its own: the panels in two columns."""
    body, top = [], 0
    for i in range(0, len(drawings), 2):
        pair = drawings[i : i + 2]
        body += [f'<svg x="{WIDTH * k}" y="{top}"{d.svg[4:]}' for k, d in enumerate(pair)]
        top += max(d.height for d in pair)
    size = f'width="{WIDTH * min(2, len(drawings))}" height="{top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    paper = f'<title>{escape(_cut(title, 200))}</title><rect {size} fill="white"/>'
    return "\n".join([head, paper, *body, "</svg>"]) + "\n"


def draw(panel: Panel) -> Drawing:
    """Draws one panel."""
    import vl_convert  # its JavaScript engine starts with the first figure, which takes a second

    named = _named(panel) if panel.curves else []
    width = WIDTH - LEFT - (124 if panel.curves else RIGHT)
    height = max(235, LINE * (len(named) + 1))
    xs = [q.x for s in panel.series for q in s.points]
    ys = [end for s in panel.series for q in s.points for end in (q.y - q.sd, q.y + q.sd, q.y)]
    ys = [y for y in ys if y > 0 or not panel.log_y]
    ys += [] if panel.reference is None else [panel.reference]
    x = Scale(xs, width, panel.log_x, inset=12)
    y = Scale(ys, height, panel.log_y, inset=8, turned=not panel.falling)
    rows = {"points": _points(panel, y)}
    rows |= _at_ends(panel, named, x, y) if panel.curves else _beside(panel, x, y)
    drawn = vl_convert.vegalite_to_svg(_chart(panel, x, y) | {"datasets": rows})
    tall = TOP + height + BOTTOM
    about = quoteattr(_cut(f"{panel.y} against {panel.x} {panel.where}".rstrip(), 120))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" '
        f'width="{WIDTH}" height="{tall}" role="img" aria-label={about}>'
    )
    return Drawing(head + _PLACES.sub(_rounded, drawn.partition(">")[2]), tall)


def _at_ends(panel: Panel, named: Sequence[Series], x: Scale, y: Scale) -> dict[str, Rows]:
    """Returns the names at the right of curves, what leads there, and the reference's line."""
    wanted = [(y(s.points[-1].y), x(s.points[-1].x), s) for s in named]
    across = []
    if panel.reference is not None:
        at = y(panel.reference)
        across = [{"x": 0, "y": at, "x2": x.length, "y2": at}]
        wanted.append((at, x.length, Series(REFERENCE, -1, "mark", ())))
    wanted.sort(key=lambda w: w[0])
    places = apart([at for at, _, _ in wanted], y.length)
    leads, ends, names = [], [], []
    for (at, end, s), place in zip(wanted, places, strict=True):
        leads.append({"x": end + 5, "y": at, "x2": x.length + 10, "y2": place})
        ends.append({"x": x.length + 17, "y": place, "about": _cut(s.name, 60), **_look(s)})
        names.append({"x": x.length + 25, "y": place, "text": _cut(s.name, 14)})
    return {"across": across, "leads": leads, "ends": ends, "words": names}


def _beside(panel: Panel, x: Scale, y: Scale) -> dict[str, Rows]:
    """Returns the frontier's steps, labels beside points, and the machine above the axes."""
    steps = [{"x": x(a), "y": y(b)} for a, b in panel.front]
    steps += [{"x": x.length, "y": steps[-1]["y"]}] if steps else []
    spots = [
        Spot(_cut(q.label, 24), x(q.x), y(q.y), s.style, q.front)
        for s in panel.series
        for q in s.points
    ]
    labels = beside(spots, x.length, y.length)
    if panel.where:
        labels.append(Label(_cut(panel.where, 30), x.length + 8, 10 - TOP, left=True))
    words, words_left = (
        [{"x": label.x, "y": label.y, "text": label.text} for label in labels if label.left is left]
        for left in (False, True)
    )
    return {"steps": steps, "words": words, "words left": words_left}


def _chart(panel: Panel, x: Scale, y: Scale) -> dict[str, Any]:
    """Returns the Vega-Lite chart of a panel, without its rows."""

    def axis(at: Scale, title: str, **more: Any) -> dict[str, Any]:
        more |= {"values": at.ticks()} if at.log else {"tickCount": 6}
        number = ".3~s" if at.high >= 1000 else ".6~g"
        return {"scale": at.vega(), "axis": {"title": title, "format": number, **more}}

    below = {"titleX": x.length / 2, "titleY": 33, "grid": False}
    above = {"titleX": 4 - LEFT, "titleY": 10 - TOP, "titleAngle": 0, "titleAlign": "left"}
    chart = deepcopy(_template(panel.curves))
    points = next(layer for layer in chart["layer"] if layer["mark"]["type"] == "point")
    points["encoding"]["x"] |= axis(x, _cut(panel.x, 45), **below)
    points["encoding"]["y"] |= axis(y, _cut(panel.y, 30), **above)
    padding = {"left": LEFT, "top": TOP, "right": WIDTH - LEFT - x.length, "bottom": BOTTOM}
    return chart | {"width": x.length, "height": y.length, "padding": padding}


@cache
def _template(curves: bool) -> dict[str, Any]:
    """Returns what all panels share: altair takes longer for it than Vega for a whole panel.

    Points and curves are placed by the axes, which are those of the points; all else in pixels.
    """
    import altair as alt

    def rows(name: str) -> alt.Chart:
        return alt.Chart(alt.NamedData(name))

    placed = alt.X("x:Q"), alt.Y("y:Q")
    spread = alt.X("x:Q"), alt.Y("low:Q"), alt.Y2("high")
    pixels = alt.X("x:Q", scale=None, axis=None), alt.Y("y:Q", scale=None, axis=None)
    to = alt.X2("x2"), alt.Y2("y2")
    colour, dash = alt.Stroke("colour:N", scale=None), alt.StrokeDash("dash:N", scale=None)
    symbol = (
        *(colour, alt.Fill("fill:N", scale=None), alt.Shape("shape:N", scale=None)),
        alt.Description("about:N"),
    )
    inside = alt.Fill("colour:N", scale=None)
    series = alt.Detail("series:N"), alt.Description("method:N")
    points = rows("points").mark_point().encode(*placed, *symbol)
    if curves:
        layers = [
            rows("points").mark_area(opacity=0.12).encode(*spread, inside, *series),
            rows("points").mark_line(strokeWidth=1.5).encode(*placed, colour, dash, *series),
            rows("across")
            .mark_rule(aria=False, stroke=INK, strokeDash=[2, 3])
            .encode(*pixels, *to),
            rows("leads").mark_rule(aria=False, stroke=SOFT, strokeWidth=0.5).encode(*pixels, *to),
            points,
            rows("ends").mark_point().encode(*pixels, *symbol),
        ]
    else:
        steps = rows("steps").mark_line(
            aria=False, interpolate="step-after", stroke=INK, strokeWidth=1.2, opacity=0.55
        )
        layers = [
            steps.encode(*pixels),
            rows("points").mark_rule().encode(*spread, colour, *series),
            points,
        ]
    for name in ("words", "words left"):
        at: Any = {"align": "right" if name == "words left" else "left", "baseline": "middle"}
        text = rows(name).mark_text(**at)
        ground = rows(name).mark_text(**at, stroke="white", aria=False)
        layers += [ground.encode(*pixels, alt.Text("text:N"))]
        layers += [text.encode(*pixels, alt.Text("text:N"), alt.Description("text:N"))]
    chart = alt.layer(*layers).properties(autosize=alt.AutoSizeParams(type="none"))
    sizes: Any = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    colours: Any = {"labelColor": SOFT, "titleColor": INK, "gridColor": RULE, "tickColor": RULE}
    made: dict[str, Any] = (
        chart.configure_axis(
            **sizes, **colours, domainColor=RULE, titleBaseline="middle", aria=False,
            labelOverlap=False,
        )
        .configure_view(stroke=None)
        .configure_text(fontSize=11, fill=INK, strokeWidth=3)
        .configure_point(size=45, strokeWidth=1.4, opacity=1)
        .to_dict()
    )  # fmt: skip
    return made


def _points(panel: Panel, y: Scale) -> Rows:
    """Returns a row for each point: its place, its spread inside the axis, its look."""
    return [
        {
            "x": q.x, "y": q.y, "low": max(q.y - q.sd, y.low), "high": q.y + q.sd,
            "series": i, "about": _cut(q.note, 200), "method": q.note.split(" ")[0], **_look(s),
        }
        for i, s in enumerate(panel.series)
        for q in s.points
    ]  # fmt: skip


def _look(s: Series) -> dict[str, Any]:
    """Returns colour, filling, shape and dashes of a series."""
    colour, number = INK, 0
    shape = STAR
    if s.style >= 0:
        number = s.style // len(COLOURS) % len(SHAPES)
        colour, shape = COLOURS[s.style % len(COLOURS)], SHAPES[number]
    fill = {"mark": colour, "hollow": "white", "cross": "none"}[s.kind]
    shape = CROSS if s.kind == "cross" else shape
    return {"colour": colour, "fill": fill, "shape": shape, "dash": DASHES[number]}


def _named(panel: Panel) -> list[Series]:
    """Returns what gets a name at the right: a method's curves, or its points if it has none."""
    curved = {s.style for s in panel.series if len(s.points) > 1}
    return [s for s in panel.series if len(s.points) > 1 or s.style not in curved]


def _rounded(places: re.Match[str]) -> str:
    """Returns pixels with one decimal: the last ones of sixteen may differ between machines."""
    return _DECIMALS.sub(lambda number: f"{round(float(number[0]), 1):g}", places[0])


def _cut(value: str, limit: int) -> str:
    """Returns foreign text on one line, cut where it is long."""
    clean = printable(value)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
