"""Where the words of a figure stand: near points or at the end of curves, none on another.

Points whose labels would meet get them in columns at their sides, in the order of the points. All
other labels take the cheapest free place around their point. Words are as wide as `wide_of` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

LINE = 13
"""Pixels from one line of text to the next."""

Lead = tuple[float, float, float, float]
"""A line from a point to its label: x and y of both ends."""

_HALF = LINE / 2
_POINT = 5.5
"""Pixels around the middle of a point that no word may cover."""
_ASIDE = 8.0
"""Pixels from the middle of a point to a label that needs no line."""
_COLUMN = 15.0
"""Pixels from the outermost point to a column of labels."""
_LONGEST = 90.0
"""Pixels of a line to a label in a column."""

_Pixels = NDArray[np.float64]
"""Rows of x and y, or of left, top, right and bottom; or a price or distance of each row."""
_Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Label:
    """Words at a pixel of the axes.

    Attributes:
        left: the words end at `x`.
        lead: the line that leads to them, if they are not beside their point.
    """

    text: str
    x: float
    y: float
    left: bool = False
    lead: Lead | None = None


@dataclass(frozen=True)
class Spot:
    """A point in pixels, and its label; `first` is placed before all others."""

    text: str
    x: float
    y: float
    first: bool = False


def beside(
    spots: Sequence[Spot], width: float, height: float, lines: Sequence[tuple[float, float]] = ()
) -> list[Label | None]:
    """Returns the label of each spot, none over another or over a point; None where none has room.

    Args:
        spots: all points; those without text are only kept free.
        width: of the axes; no label leaves them.
        height: of the axes.
        lines: points along drawn lines, which labels keep off where they can.
    """
    clusters, best = _clusters(spots), None
    while True:
        room = _Room(spots, width, height, lines)
        for cluster in sorted((c for c in clusters if len(c) > 1), key=lambda c: (-len(c), c)):
            room.columns(cluster)
        for i in sorted(range(len(spots)), key=lambda i: _turn(spots[i])):
            if spots[i].text and room.labels[i] is None:
                room.around(i)
        if best is None or len(room.without) < len(best.without):
            best = room
        if not room.without or len(clusters) < 2:
            return best.labels
        # The neighbours have taken its room: it shares their column.
        clusters = _joined(clusters, spots, room.without[0])


def _turn(spot: Spot) -> tuple[bool, float, float]:
    return not spot.first, spot.y, spot.x


def _joined(clusters: list[list[int]], spots: Sequence[Spot], i: int) -> list[list[int]]:
    """Returns the clusters, that of spot `i` joined with the nearest other one."""
    own = next(c for c in clusters if i in c)
    others = [c for c in clusters if c is not own]

    def away(cluster: list[int]) -> float:
        return min(math.hypot(spots[i].x - spots[j].x, spots[i].y - spots[j].y) for j in cluster)

    near = min(others, key=away)
    return [c for c in others if c is not near] + [sorted(own + near)]


def apart(wanted: Sequence[float], height: float) -> list[float]:
    """Returns the heights of lines of text, as near to those wanted as they can be, in order.

    Args:
        wanted: pixels from the top, ascending.
        height: of the room. Lines that do not fit into it stand above its top.
    """
    if not len(wanted):
        return []
    steps = LINE * np.arange(len(wanted))
    free = isotonic_regression(np.asarray(wanted, dtype=float) - steps).x
    last = height - steps[-1]
    return [float(y) for y in np.clip(free, min(0.0, last), last) + steps]


def wide_of(label: str) -> float:
    """Returns the pixels that a label takes at most, roughly: there is no font to ask."""
    return sum(7.0 if ord(c) < 0x250 else 11.5 for c in label)


def _clusters(spots: Sequence[Spot]) -> list[list[int]]:
    """Returns the points with labels, those whose labels would meet beside them as one group."""
    found: list[list[int]] = []
    for i in (i for i, s in enumerate(spots) if s.text):
        near = [group for group in found if any(_meet(spots[i], spots[j]) for j in group)]
        found = [group for group in found if group not in near]
        found.append([j for group in near for j in group] + [i])
    return [sorted(group) for group in found]


def _meet(a: Spot, b: Spot) -> bool:
    return abs(a.x - b.x) < 24 and abs(a.y - b.y) < 1.7 * LINE


class _Room:
    """What is taken on a pair of axes, and the labels so far."""

    def __init__(
        self,
        spots: Sequence[Spot],
        width: float,
        height: float,
        lines: Sequence[tuple[float, float]],
    ) -> None:
        self.spots, self.width, self.height = spots, width, height
        self.points = np.array([(s.x, s.y) for s in spots], dtype=float).reshape(-1, 2)
        self.lines = np.array(lines, dtype=float).reshape(-1, 2)
        self.boxes = np.empty((0, 4))
        self.leads = np.empty((0, 2))
        self.labels: list[Label | None] = [None] * len(spots)

    @property
    def without(self) -> list[int]:
        """The spots whose labels have found no room."""
        return [i for i, s in enumerate(self.spots) if s.text and self.labels[i] is None]

    def columns(self, cluster: Sequence[int]) -> None:
        """Places the labels of a cluster at its right and left, where they find room."""
        by_x = sorted(cluster, key=lambda i: (self.spots[i].x, self.spots[i].y))
        least = np.inf
        for k in range(len(by_x) + 1):
            parts = self._column(by_x[:k], -1) + self._column(by_x[k:], 1)
            owners = np.array([i for i, _ in parts])
            boxes = np.array([box for _, box in parts])
            leads = _leads(self.points[owners], boxes)
            if (price := self._price_of(owners, boxes, leads)) < least:
                least, best = price, (owners, boxes, leads)
        if np.isfinite(least):
            for i, box, lead in zip(*best, strict=True):
                self._take(int(i), box, lead)

    def around(self, i: int) -> None:
        """Places a label at the cheapest free place around its point, if there is one."""
        s = self.spots[i]
        boxes, price = _places(s)
        free = self._inside(boxes) & ~self._covers(boxes)
        boxes, price = boxes[free], price[free]
        owners = np.full(len(boxes), i)
        leads = _leads(self.points[owners], boxes)
        price = price + self._disturbs(owners, boxes, leads)
        price[_cross(self.boxes, leads).any(axis=0)] = np.inf
        if np.isfinite(price).any():
            best = int(np.argmin(price))
            self._take(i, boxes[best], leads[best])

    def _column(self, group: Sequence[int], side: int) -> list[tuple[int, list[float]]]:
        """Returns the boxes of a column, at the right (1) or left (-1) of its points."""
        if not group:
            return []
        spots = sorted((self.spots[i].y, -side * self.spots[i].x, i) for i in group)
        heights = apart([y for y, _, _ in spots], self.height - _HALF + 2)
        moved = any(abs(y - at) > 1 for (y, _, _), at in zip(spots, heights, strict=True))
        outermost = side * max(side * self.spots[i].x for i in group)
        edge = outermost + side * (_COLUMN if moved else _ASIDE)
        made = []
        for (_, _, i), at in zip(spots, heights, strict=True):
            left, right = sorted((edge, edge + side * wide_of(self.spots[i].text)))
            made.append((i, [left, at - _HALF, right, at + _HALF]))
        return made

    def _price_of(self, owners: NDArray[np.int64], boxes: _Pixels, leads: _Pixels) -> float:
        """Returns what columns cost, by how far labels are and what they disturb."""
        if not self._inside(boxes).all() or self._covers(boxes).any():
            return np.inf
        crosses = _cross(boxes, leads)
        np.fill_diagonal(crosses, False)
        far = _long(leads)
        if crosses.any() or _cross(self.boxes, leads).any() or max(far) > _LONGEST:
            return np.inf
        return float((far + self._disturbs(owners, boxes, leads)).sum())

    def _inside(self, boxes: _Pixels) -> _Flags:
        found: _Flags = (boxes[:, 0] >= -2) & (boxes[:, 2] <= self.width + 2)
        return found & (boxes[:, 1] >= -2 * _HALF) & (boxes[:, 3] <= self.height + 2)

    def _covers(self, boxes: _Pixels) -> _Flags:
        """Tells whether a box would hide a point, a label or a line to one."""
        hidden = _in(boxes, self.points, _POINT).any(axis=1) | _in(boxes, self.leads).any(axis=1)
        return np.asarray(hidden | _overlap(boxes, self.boxes).any(axis=1), dtype=np.bool_)

    def _disturbs(self, owners: NDArray[np.int64], boxes: _Pixels, leads: _Pixels) -> _Pixels:
        """Returns the price of lines under a label, of points near it and under its line."""
        own = np.arange(len(self.points)) == owners[:, None]
        over = _closest(leads, self.points) < 4.0
        crossed = _closest(leads, self.leads) < 2.0
        nearer = (_in(boxes, self.points, 10.0) & ~own).sum(axis=1)
        lines = np.minimum(_in(boxes, self.lines).sum(axis=1), 6)
        runs_over = (over & ~own).sum(axis=1) * (_long(leads) > 5)
        found: _Pixels = 12.0 * (runs_over + crossed.any(axis=1)) + 9.0 * nearer + 2.0 * lines
        return found

    def _take(self, i: int, box: _Pixels, lead: _Pixels) -> None:
        s = self.spots[i]
        left = bool(s.x >= box[2])
        shown = None
        if _long(lead[None])[0] > 5:
            ends = [round(float(v), 3) for v in (*lead[0], *lead[-1])]
            shown = ends[0], ends[1], ends[2], ends[3]
            self.leads = np.vstack([self.leads, lead[2:]])
        self.boxes = np.vstack([self.boxes, box])
        at = float(box[2] if left else box[0])
        self.labels[i] = Label(s.text, at, float(box[1] + _HALF), left, shown)


def _places(s: Spot) -> tuple[_Pixels, _Pixels]:
    """Returns boxes around a point, and a price that grows with their distance from it."""
    turns = np.arange(16) * (2 * np.pi / 16)
    far = np.repeat([_ASIDE, 14, 20, 28, 38, 50, 64, 80, 98], len(turns))
    turn = np.tile(turns, 9)
    x, y, wide = s.x + far * np.cos(turn), s.y + far * np.sin(turn), wide_of(s.text)
    left = np.where(np.cos(turn) > 0.2, x, np.where(np.cos(turn) < -0.2, x - wide, x - wide / 2))
    boxes = np.stack([left, y - _HALF, left + wide, y + _HALF], axis=1)
    # Beside a point is better than above it, and the right is better than the left.
    return boxes, far + 2 * np.abs(np.sin(turn)) + 0.5 * (np.cos(turn) < 0)


def _leads(points: _Pixels, boxes: _Pixels) -> _Pixels:
    """Returns eight points along the line from each point's rim to its box."""
    x = np.clip(points[:, 0], boxes[:, 0] - 2, boxes[:, 2] + 2)
    y = np.clip(points[:, 1], boxes[:, 1] + 4, boxes[:, 3] - 4)
    way = np.stack([x, y], axis=1) - points
    rim = np.minimum(4.5 / np.maximum(np.hypot(*way.T), 1e-6), 1.0)[:, None]
    shares = rim + (1 - rim) * np.arange(8) / 7
    found: _Pixels = points[:, None, :] + shares[:, :, None] * way[:, None, :]
    return found


def _long(leads: _Pixels) -> _Pixels:
    found: _Pixels = np.hypot(*(leads[:, -1] - leads[:, 0]).T)
    return found


def _overlap(a: _Pixels, b: _Pixels) -> _Flags:
    """Tells for each box of `a` and each of `b` whether they overlap."""
    x = (a[:, None, 0] < b[None, :, 2] + 2) & (b[None, :, 0] < a[:, None, 2] + 2)
    y = (a[:, None, 1] < b[None, :, 3] - 1e-6) & (b[None, :, 1] < a[:, None, 3] - 1e-6)
    return np.asarray(x & y, dtype=np.bool_)


def _closest(lines: _Pixels, points: _Pixels) -> _Pixels:
    """Returns how near each line comes to each point."""
    x = lines[:, :, None, 0] - points[None, None, :, 0]
    y = lines[:, :, None, 1] - points[None, None, :, 1]
    found: _Pixels = np.sqrt((x * x + y * y).min(axis=1))
    return found


def _cross(boxes: _Pixels, lines: _Pixels) -> _Flags:
    """Tells for each box and line whether one of the line's points lies in the box."""
    found = _in(boxes, lines.reshape(-1, 2)).reshape(len(boxes), *lines.shape[:2])
    return np.asarray(found.any(axis=2), dtype=np.bool_)


def _in(boxes: _Pixels, points: _Pixels, margin: float = 0.0) -> _Flags:
    """Tells for each box and point whether it is inside, or that near."""
    x, y = points[None, :, 0], points[None, :, 1]
    across = (x > boxes[:, None, 0] - margin) & (x < boxes[:, None, 2] + margin)
    along = (y > boxes[:, None, 1] - margin) & (y < boxes[:, None, 3] + margin)
    return np.asarray(across & along, dtype=np.bool_)
