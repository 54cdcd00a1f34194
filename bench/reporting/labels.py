"""Where the words of a figure stand: beside points or at the end of curves, none on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LINE = 13
"""Pixels from one line of text to the next."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Label:
    """Words at a pixel of the axes; `left` of them where they end there.

    Attributes:
        name: what a mark of the same method is called by its first word.
    """

    text: str
    x: float
    y: float
    left: bool = False


@dataclass(frozen=True)
class Spot:
    """A point that may get a label, in pixels; `first` is placed before all others."""

    text: str
    x: float
    y: float
    group: int
    first: bool


_ASIDE = ((7, 0), (-7, 0), (5, -10), (-5, -10), (5, 10), (-5, 10), (5, -22), (-5, -22))
"""Where a label may be, from its point: pixels to its near end and to its middle."""


def beside(spots: Sequence[Spot], width: float, height: float) -> list[Label]:
    """Returns labels beside points, none over another or over a point, one a group at least tried.

    Args:
        spots: all points; those without text are only kept free.
        width: of the axes; no label leaves them.
        height: of the axes.
    """
    taken: list[Box] = [(s.x - 5, s.y - 5, s.x + 5, s.y + 5) for s in spots]
    done: set[int] = set()
    placed = []
    for s in sorted(spots, key=lambda s: (not s.first, s.y)):
        if not s.text or (s.group in done and not s.first):
            continue
        wide = wide_of(s.text)
        # Off the point's height a label could be that of a neighbour: for the frontier only, whose
        # line runs at that height.
        for dx, dy in [*_ASIDE[2:], *_ASIDE[:2]] if s.first else _ASIDE[:2]:
            left = s.x + dx if dx > 0 else s.x + dx - wide
            box = (left, s.y + dy - 5.5, left + wide, s.y + dy + 5.5)
            if box[0] < 2 or box[2] > width or box[1] < -8 or box[3] > height:
                continue
            if any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            done.add(s.group)
            placed.append(Label(s.text, s.x + dx, s.y + dy, left=dx < 0))
            break
    return placed


def apart(wanted: Sequence[float], height: float) -> list[float]:
    """Returns the heights of lines of text, as near to those wanted as they can be, in order.

    Args:
        wanted: pixels from the top, ascending.
        height: the last one is above it.
    """
    places: list[float] = []
    for at in wanted:
        places.append(max(at, places[-1] + LINE) if places else at)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - LINE if i + 1 < len(places) else height)
    return places


def wide_of(label: str) -> float:
    """Returns the pixels that a label takes at most, roughly: there is no font to ask."""
    return sum(7.0 if ord(c) < 0x250 else 11.5 for c in label)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
