"""Numbers to pixels along an axis, and the round numbers that are written at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape as _escape

from bench.core.cell import REFERENCE
from bench.core.tables import human, printable


class Scale:
    """Numbers → pixels, linear or logarithmic; a logarithm's zeros get a place of their own.

    Args:
        values: what is to be shown.
        start: pixel at the low end; above `end` for an axis that goes up.
        end: pixel at the high end.
        log: numbers above 0 by their logarithm.
        inset: pixels that stay free at both ends.
    """

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool, inset: float
    ) -> None:
        self.log = log
        self.zero = start + math.copysign(inset, end - start)
        known = [v for v in values if v > 0] if log else list(values)
        self.zeros = log and len(known) < len(values)
        known = known or [1.0]
        low, high = (self._in(f(known)) for f in (min, max))
        if high - low < 1e-9 * max(abs(high), 1):  # one value stands in the middle
            margin = 0.5 if log else max(0.05 * abs(high), 1e-6)
            low, high = low - margin, high + margin
        inward = math.copysign(inset, end - start)
        first = start + inward * (3.5 if self.zeros else 1)
        self.slope = (end - inward - first) / (high - low)
        self.first, self.low, self.high = first, low, high
        edge = 0.0 if self.zeros else inset
        spare = edge / abs(self.slope)
        self.range = low - spare, high + inset / abs(self.slope)

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        if self.log and value <= 0:
            return self.zero
        return self.first + self.slope * (self._in(value) - self.low)

    def ticks(self) -> list[float]:
        """A handful of round numbers inside the axis."""
        low, high = self.range
        zero = [0.0] if self.zeros else []
        if not self.log:
            return round_numbers(low, high)
        decades = range(math.floor(low), math.ceil(high) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            step = max(1, len(decades) // 6)
            found = [d * 10.0**e for e in decades if e % step == 0 for d in digits]
            found = [v for v in found if low <= math.log10(v) <= high]
            if len(found) >= 3:
                return zero + found
        found = [10**v for v in round_numbers(low, high)]
        short = [float(f"{v:.3g}") for v in found]
        inside = [low <= math.log10(v) <= high for v in short]
        return zero + [s if fits else v for s, v, fits in zip(short, found, inside, strict=True)]

    def _in(self, value: float) -> float:
        return math.log10(value) if self.log else value


def round_numbers(low: float, high: float) -> list[float]:
    """Between three and six multiples of 1, 2 or 5 × 10^n."""
    rough = (high - low) / 5.5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


WIDTH = 400
LEFT, TOP, BOTTOM = 50, 28, 42
LINE = 13
"""Pixels from one line of text to the next."""

COLOURS = 6
SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "m-3.6-3.6h7.2v7.2h-7.2z",  # square
    "m0-4.8l4.5 8h-9z",  # triangle
    "m0-5.2l4.6 5.2l-4.6 5.2l-4.6-5.2z",  # diamond
)
"""A method's colour and shape (with its line's dashes) are those of its number."""
STAR = "m0-6l1.5 4.2h4.4l-3.5 2.7l1.3 4.3l-3.7-2.6l-3.7 2.6l1.3-4.3l-3.5-2.7h4.4z"
CROSS = "m-3.5-3.5l7 7m0-7l-7 7"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Point:
    """A row's place: `x` and `y` as printed, `sd` of y over seeds, a line of `note` on hover.

    `label` stands beside the point, if there is room; where `front` is set before all others.
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


@cache
def css() -> str:
    """Style of all figures."""
    return Path(__file__).with_name("plot.css").read_text(encoding="utf-8")


def text(value: str, limit: int = 60) -> str:
    """Foreign text for XML, cut where it is long."""
    clean = printable(value)
    return _escape(clean if len(clean) <= limit else clean[: limit - 1] + "…", {'"': "&quot;"})


def sheet(panels: Sequence[Panel], title: str) -> str:
    """A file of its own: the panels in two columns."""
    drawn = [panel(p) for p in panels]
    body, top = [], 0.0
    for i in range(0, len(drawn), 2):
        for column, (inside, _) in enumerate(drawn[i : i + 2]):
            body.append(f'<svg x="{column * WIDTH}" y="{top:g}"{inside[4:]}')
        top += max(height for _, height in drawn[i : i + 2])
    size = f"{WIDTH * min(2, len(drawn))}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {top:g}" '
        f'width="{size}" height="{top:g}" role="img">'
    )
    about = f"<title>{text(title, 200)}</title>\n<style>\n{css()}</style>"
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return "\n".join([head, about, paper, *body, "</svg>"]) + "\n"


def panel(p: Panel) -> tuple[str, float]:
    """One panel as an `svg` element, and its height."""
    named = _named(p) if p.curves else []
    right = WIDTH - (124 if p.curves else 14)
    bottom = TOP + max(235.0, LINE * (len(named) + 1.0))
    xs = [point.x for s in p.series for point in s.points]
    ys = [end for s in p.series for q in s.points for end in (q.y - q.sd, q.y + q.sd, q.y)]
    if p.log_y:
        ys = [y for y in ys if y > 0]
    ys += [] if p.reference is None else [p.reference]
    low, high = (TOP, bottom) if p.falling else (bottom, TOP)
    x = Scale(xs, LEFT, right, p.log_x, inset=12)
    y = Scale(ys, low, high, p.log_y, inset=8)
    parts = [*_axes(p, x, y, right, bottom)]
    if p.front:
        steps = [f"M{x(p.front[0][0]):.1f} {y(p.front[0][1]):.1f}"]
        steps += [f"H{x(a):.1f}V{y(b):.1f}" for a, b in p.front[1:]]
        parts.append(f'<path class="front" d="{"".join(steps)}H{right}"/>')
    for s in p.series:
        parts.append(_series(s, x, y, p.curves))
    parts += _ends(named, p, x, y, right, bottom) if p.curves else _beside(p, x, y, right, bottom)
    height = bottom + BOTTOM
    label = text(f"{p.y} against {p.x} {p.where}".rstrip(), 120)
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return "\n".join([f'{head} role="img" aria-label="{label}">', *parts, "</svg>"]), height


def _axes(p: Panel, x: Scale, y: Scale, right: float, bottom: float) -> list[str]:
    parts = [f'<text x="4" y="14">{text(p.y, 30)}</text>']
    if p.where:
        parts.append(f'<text class="soft end" x="{WIDTH - 6}" y="14">{text(p.where, 30)}</text>')
    for value in y.ticks():
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text class="soft end" x="{LEFT - 5}" y="{at + 4:.1f}">{_tick(value)}</text>'
        )
    last = -math.inf
    for value in x.ticks():
        label, at = _tick(value), x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom:g}v4"/>')
        if at - last > 0:  # no label into the last one
            parts.append(f'<text class="soft mid" x="{at:.1f}" y="{bottom + 16:g}">{label}</text>')
            last = at + _wide(label) + 6
    parts.append(f'<path class="grid" d="M{LEFT} {bottom:g}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="mid" x="{middle:g}" y="{bottom + 33:g}">{text(p.x, 45)}</text>')
    return parts


def _tick(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1000 else human(value)


def _series(s: Series, x: Scale, y: Scale, joined: bool) -> str:
    """One series as a group; the page lights up all groups of the same `data-k`."""
    at = [(x(q.x), y(q.y)) for q in s.points]
    spread = [
        (y(q.y - q.sd) if q.y - q.sd > 0 or not y.log else y(10 ** y.range[0]), y(q.y + q.sd))
        for q in s.points
    ]
    colour, shape, dash = _look(s)
    parts = [f'<g class="series {colour}" data-k="{s.style}">']
    if joined and len(at) > 1:
        if any(q.sd for q in s.points):
            there = "L".join(
                f"{a:.1f} {low:.1f}" for (a, _), (low, _) in zip(at, spread, strict=True)
            )
            back = [f"L{a:.1f} {up:.1f}" for (a, _), (_, up) in zip(at, spread, strict=True)]
            parts.append(f'<path class="band" d="M{there}{"".join(reversed(back))}z"/>')
        line = "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
        parts.append(f'<path class="line d{dash}" d="M{line}"/>')
    else:
        bars = [
            f"M{a:.1f} {low:.1f}V{up:.1f}"
            for (a, _), (low, up), q in zip(at, spread, s.points, strict=True)
            if q.sd
        ]
        parts += [f'<path class="bar" d="{"".join(bars)}"/>'] if bars else []
    for (a, b), q in zip(at, s.points, strict=True):
        note = text(q.note, 200)
        parts.append(
            f'<path class="{s.kind}" d="M{a:.1f} {b:.1f}{shape}"><title>{note}</title></path>'
        )
    return "\n".join([*parts, "</g>"])


def _look(s: Series) -> tuple[str, str, int]:
    """Class of the colour, path of the marker, number of the dashes."""
    colour, shape, dash = "ink", STAR, 0
    if s.style >= 0:
        dash = s.style // COLOURS % len(SHAPES)
        colour, shape = f"c{s.style % COLOURS}", SHAPES[dash]
    return colour, CROSS if s.kind == "cross" else shape, dash


def _named(p: Panel) -> list[Series]:
    """Series that get a name at the right: a method's curves, or its points if it has no curve."""
    curved = {s.style for s in p.series if len(s.points) > 1}
    return [s for s in p.series if len(s.points) > 1 or s.style not in curved]


def _ends(
    named: Sequence[Series], p: Panel, x: Scale, y: Scale, right: float, bottom: float
) -> list[str]:
    """Names at the right of curves, moved apart, with a thin line to where each curve ends."""
    wanted = [(y(s.points[-1].y), x(s.points[-1].x), s) for s in named]
    parts = []
    if p.reference is not None:
        at = y(p.reference)
        parts.append(f'<path class="ref" d="M{LEFT} {at:.1f}H{right}"/>')
        wanted.append((at, right, Series(REFERENCE, -1, "mark", ())))
    wanted.sort(key=lambda w: w[0])
    places: list[float] = []
    for at, _, _ in wanted:
        places.append(max(at, places[-1] + LINE) if places else at)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - LINE if i + 1 < len(places) else bottom)
    for (at, end, s), place in zip(wanted, places, strict=True):
        d = f"M{end + 5:.1f} {at:.1f}L{right + 2} {at:.1f}L{right + 10} {place:.1f}"
        parts.append(f'<path class="lead" d="{d}"/>')
        colour, shape, _ = _look(s)
        parts.append(f'<g class="series {colour}" data-k="{s.style}">')
        parts.append(f'<path class="{s.kind}" d="M{right + 17} {place:.1f}{shape}"/>')
        parts.append(f'<text x="{right + 25}" y="{place + 4:.1f}">{text(s.name, 14)}</text></g>')
    return parts


_ASIDE = ((7, 0), (-7, 0), (5, -10), (-5, -10), (5, 10), (-5, 10), (5, -22), (-5, -22))
"""Where a label may be, from its point: pixels to its near end and to its middle."""


def _beside(p: Panel, x: Scale, y: Scale, right: float, bottom: float) -> list[str]:
    """Labels beside points, none over another or over a point; those on the frontier first."""
    every = [(q, s.style) for s in p.series for q in s.points]
    taken: list[Box] = [(x(q.x) - 5, y(q.y) - 5, x(q.x) + 5, y(q.y) + 5) for q, _ in every]
    parts = []
    done: set[int] = set()
    for q, style in sorted(every, key=lambda e: (not e[0].front, -e[0].y)):
        if not q.label or (style in done and not q.front):
            continue
        a, b, wide = x(q.x), y(q.y), _wide(q.label)
        # Off the point's height a label could be that of a neighbour: for the frontier only, whose
        # line runs at that height.
        for dx, dy in [*_ASIDE[2:], *_ASIDE[:2]] if q.front else _ASIDE[:2]:
            left = a + dx if dx > 0 else a + dx - wide
            box = (left, b + dy - 5.5, left + wide, b + dy + 5.5)
            if box[0] < LEFT + 2 or box[2] > right or box[1] < TOP - 8 or box[3] > bottom:
                continue
            if any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            done.add(style)
            place, end = (box[0], "") if dx > 0 else (box[2], ' class="end"')
            label = text(q.label, 24)
            at = f'x="{place:.1f}" y="{b + dy + 4:.1f}"'
            parts.append(f'<text{end} {at} data-k="{style}">{label}</text>')
            break
    return parts


def _wide(label: str) -> float:
    """Pixels that a label takes at most, roughly: there is no font to ask."""
    return sum(7.0 if ord(c) < 0x250 else 11.5 for c in label[:24])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
