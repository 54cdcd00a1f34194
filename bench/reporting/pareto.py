"""What quality costs: the rows of a board as curves over sparsity, and as points over costs.

A figure of points has the rows of one column: of one pattern and sparsity, with zeros as counted.
A row is on the Pareto frontier where no other costs as little and scores as well. The frontier is
one of means: no test is behind it, so what lies just below it may be as good. Unverified rows are
drawn (as crosses) and are never on it. Rows with collapsed runs are named below the figure.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from bench.core.cell import REFERENCE
from bench.core.collapse import collapsed
from bench.core.pattern import DENSE, UNSTRUCTURED, Pattern
from bench.planning import registry
from bench.reporting import axes
from bench.reporting.boards import Board, counted
from bench.reporting.figures import Figure, Panel, Point, Series
from bench.reporting.rows import (
    Key,
    Row,
    collapse_note,
    higher,
    mean,
    name,
    printed_scores,
)

FIGURE_LEGEND = """\
**figures**: each mark is a mean over seeds; bands and bars are the standard deviation. Up is better
and left is cheaper. The first figure has a curve for each method over the zeros that were counted.
Each other figure has the rows of one column: *training time* is seconds to train and prune / the
dense row's, on one machine; one-shot methods include the dense training that they start from, and
a teacher's training is left out (where dense trains nothing, the axis has seconds); *trained* is
the share of the model's parameters that the optimizer held, without the head, which is 0 for
one-shot methods. The grey steps are the Pareto frontier of the means: rows that no other row
beats in both directions. The frontier is not tested: a row just below it may be as good. A hollow
mark is a pattern other than unstructured, a star is dense, a cross is unverified (never on the
frontier). Rows with collapsed runs have no band in curves and are not among the points.
"""

WIDE = 6
"""Times from the lowest to the highest number from which an axis is logarithmic."""

FEWEST = 3
"""Rows that a plot of points must have, apart from dense."""


class _Drawn(NamedTuple):
    """What all figures of a board share.

    Attributes:
        rows: of the board.
        dense: the board's dense row.
        names: of each row's method, with what tells it from other rows of the method.
        quality: mean score of each row in the unit of tables.
        styles: a number for each method but the reference.
    """

    rows: Sequence[Row]
    dense: Row | None
    names: dict[Key, str]
    quality: dict[Key, float]
    styles: dict[str, int]

    def figure(
        self, keys: Sequence[Key], file: str, at: str, panels: Sequence[Panel], note: str = ""
    ) -> Figure:
        """Returns a figure of some rows, with the line of the dense row across."""
        first = self.rows[0][1][0].scores
        assert first is not None
        rises = first.higher_is_better
        dense = self.dense
        values = [self.quality[key] for key in keys]
        values += [] if dense is None else [self.quality[dense[0]]]
        return Figure(
            file,
            at + (f"{first.metric} × 100" if rises else f"{first.metric}, axis turned"),
            tuple(panels),
            falling=not rises,
            log_y=not rises and min(values, default=0) > 0 and max(values) > WIDE * min(values),
            reference=None if dense is None else self.quality[dense[0]],
            note=note,
        )


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the points (cost, quality) that no other beats, by cost; equal points stand together.

    One beats another that it matches in both and surpasses in one.
    """
    best, at = -float("inf"), float("inf")
    found = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, quality = points[i]
        if quality > best or (quality == best and cost == at):
            best, at = quality, cost
            found.append(i)
    return found


def figures(board: Board, styles: dict[str, int]) -> list[Figure]:
    """Returns the figures of a board: curves over sparsity, then points over costs by column.

    Args:
        board: of one task, model and budget.
        styles: a number for each method but the reference.
    """
    unit = board.records[0].scores
    assert unit is not None
    quality = {key: unit.unit * mean(inside) for key, inside in board.rows}
    shared = _Drawn(board.rows, board.dense, _names(board), quality, styles)
    found = [_curves(shared)]
    found += [_points(shared, column.rows) for column in board.columns if column.zeros]
    return [figure for figure in found if figure.panels]


def style_numbers(methods: Sequence[str]) -> dict[str, int]:
    """Numbers the methods, the same in all figures: the built-in ones first, in their order."""
    known = registry.builtin("method")
    others = sorted(set(methods) - set(known))
    found = [name for name in (*known, *others) if name != REFERENCE]
    return {name: i for i, name in enumerate(found)}


def _names(board: Board) -> dict[Key, str]:
    """Names each row without its pattern: settings that trials chose belong to the method."""
    return {
        key: " ".join(map(str, filter(None, (label, key[3].quantization))))
        for key, label in board.labels.items()
    }


def _curves(shared: _Drawn) -> Figure:
    """Returns quality against counted sparsity; rows without zeros are not on it, but for dense."""
    joined: dict[tuple[str, Pattern], list[tuple[float, Row]]] = defaultdict(list)
    for key, inside in shared.rows:
        if (x := 100 * counted(inside)) > 0 and key[0] != REFERENCE:
            joined[shared.names[key], key[1]].append((x, (key, inside)))
    curved = {called for (called, _), parts in joined.items() if len(parts) > 1}
    made = []
    for (called, pattern), parts in sorted(joined.items(), key=lambda item: str(item[0])):
        drawn = [
            _point(shared, row, x, f"{x:.4g} % zeros")
            for x, row in sorted(parts, key=lambda part: (part[0], str(part[1][0])))
        ]
        key = parts[0][1][0]
        label = called if pattern == UNSTRUCTURED else f"{called} {pattern.text}"
        if pattern != UNSTRUCTURED and len(parts) == 1 and called in curved:
            label = ""  # the curve of the same colour and shape has the name
        made.append(Series(label, _style(key, shared.styles), _kind(key), tuple(drawn)))
    panel = Panel("zeros in target weights, %", tuple(made), curves=True)
    keys = [row[0] for parts in joined.values() for _, row in parts]
    return shared.figure(keys, "", "", [panel] if made else [])


def _points(shared: _Drawn, rows: Sequence[Row]) -> Figure:
    """Returns quality against each cost for the rows of one column."""
    _, pattern, sparsity, overrides, _ = rows[0][0]
    quantized = str(overrides.quantization) if overrides.quantization else ""
    sound = [row for row in rows if not any(map(collapsed, row[1]))]
    drawn = {key for key, _ in sound}
    left_out = sorted(shared.names[key] for key, _ in rows if key not in drawn)
    called = pattern.text if pattern.sparsity is not None else f"{pattern} {100 * sparsity:g} %"
    at = ", ".join(filter(None, (called, quantized)))
    file = re.sub("[^a-z0-9.]+", "-", f"{pattern.slug}-{sparsity:g} {quantized}".strip())
    panels = []
    for cost in axes.costs(shared.dense):
        placed = [(row, x) for row in sound if (x := cost.of(row[1])) is not None]
        if len(placed) >= FEWEST and len({x for _, x in placed}) > 1:
            panels.append(_panel(shared, cost, placed))
    note = f"With collapsed runs, not drawn: {', '.join(left_out)}." if left_out else ""
    return shared.figure([key for key, _ in sound], file, f"{at}: ", panels, note)


def _panel(shared: _Drawn, cost: axes.Cost, placed: Sequence[tuple[Row, float]]) -> Panel:
    """Returns one plot of points, with the dense row as a star."""
    sign = 1 if higher([r for row, _ in placed for r in row[1]]) else -1
    eligible = [(row[0], x) for row, x in placed if row[0][-1] != "unverified"]
    best = frontier([(x, sign * shared.quality[key]) for key, x in eligible])
    front = [eligible[i] for i in best]
    names = {key for key, _ in front}
    dense = shared.dense
    if dense is not None and (x := cost.of(dense[1])) is not None:
        placed = [*placed, (dense, x)]
    made = []
    for row, x in placed:
        key = row[0]
        point = _point(shared, row, x, f"{x:.3g} {cost.unit}", key in names)
        style, kind = _style(key, shared.styles), _kind(key)
        made.append(Series(shared.names[key], style, kind, (point,)))
    made.sort(key=lambda s: (s.style, s.kind, s.name))
    known = [x for _, x in placed if x > 0]
    wide = bool(known) and max(known) > WIDE * min(known)
    corners = tuple((x, shared.quality[key]) for key, x in front)
    return Panel(cost.label, tuple(made), log_x=wide, front=corners)


def _point(shared: _Drawn, row: Row, x: float, cost: str, front: bool = False) -> Point:
    key, records = row
    values = printed_scores(records)
    note = collapse_note(records, 2)
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    spread = f" ± {sd:.2f}" if len(values) > 1 else ""
    seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
    full = " ".join(part for part in name(key, str) if part != "–")
    about = f"{full}: {shared.quality[key]:.2f}{spread} ({seeds}){note}, {cost}"
    return Point(x, shared.quality[key], 0.0 if note else sd, about, front)


def _style(key: Key, styles: dict[str, int]) -> int:
    return -1 if key[0] == REFERENCE else styles[key[0]]


def _kind(key: Key) -> str:
    if key[-1] == "unverified":
        return "cross"
    return "mark" if key[1] in (UNSTRUCTURED, DENSE) else "hollow"
