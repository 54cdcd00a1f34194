"""What quality costs: the rows of a leaderboard as curves over sparsity and points over costs.

A row is on the Pareto frontier where no other costs as little and scores as well. The frontier is
one of means: no test is behind it, so what lies just below it may be as good. Unverified rows are
drawn (as crosses) and are never on it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from bench.core.cell import REFERENCE
from bench.core.pattern import DENSE, UNSTRUCTURED
from bench.core.record import Record, number
from bench.core.tables import human
from bench.planning import registry
from bench.reporting import cost_tables
from bench.reporting.figures import Panel, Point, Series
from bench.reporting.rows import Key, Row, higher, mark_of, mean, name

FIGURE_LEGEND = """\
**figures**: each mark is a mean over seeds; bands and bars are the standard deviation. Up is better
and left is cheaper. The grey steps are the Pareto frontier of the means: rows that no other row
beats in both directions. The frontier is not tested: a row just below it may be as good. A hollow
mark is a pattern other than unstructured, a star is dense, a cross is unverified (never on the
frontier).
"""

WIDE = 6
"""Times from the lowest to the highest number from which an axis is logarithmic."""


class Cost(NamedTuple):
    """An axis: its name, a row's place on it (None where it was not counted), the machine."""

    label: str
    of: Callable[[Sequence[Record]], float | None]
    machine: str = ""


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


def panels(rows: Sequence[Row], styles: dict[str, int]) -> list[Panel]:
    """Returns the figure of one table's rows: quality against sparsity and against every cost.

    Args:
        rows: of one task, model and budget, as `rows.ordered` gives them.
        styles: a number for each method but the reference.
    """
    records = [r for _, inside in rows for r in inside]
    first = records[0].scores
    assert first is not None
    rises = higher(records)
    quality = {key: first.unit * mean(inside) for key, inside in rows}
    values = list(quality.values())
    shared: dict[str, Any] = {
        "y": f"{first.metric} × 100" if rises else f"{first.metric}, axis turned",
        "falling": not rises,
        "log_y": not rises and min(values) > 0 and max(values) > WIDE * min(values),
    }
    drawn = [_curves(rows, quality, styles, shared)]
    for cost in _costs(records):
        placed = [(key, inside, at) for key, inside in rows if (at := cost.of(inside)) is not None]
        if len(placed) > 1:
            drawn.append(_scatter(cost, placed, quality, styles, shared))
    return drawn


def style_numbers(methods: Sequence[str]) -> dict[str, int]:
    """Numbers the methods, the same in all figures: the built-in ones first, in their order."""
    known = registry.builtin("method")
    others = sorted(set(methods) - set(known))
    found = [name for name in (*known, *others) if name != REFERENCE]
    return {name: i for i, name in enumerate(found)}


def _curves(
    rows: Sequence[Row], quality: dict[Key, float], styles: dict[str, int], shared: dict[str, Any]
) -> Panel:
    series: dict[Any, list[tuple[Key, list[Record]]]] = defaultdict(list)
    reference = None
    for key, inside in rows:
        method, pattern, _, overrides, mark = key
        if method == REFERENCE and not overrides:
            reference = quality[key] if reference is None else reference
        elif method != REFERENCE:
            series[method, pattern, overrides, mark].append((key, inside))
    made = []
    for _, parts in sorted(series.items(), key=lambda item: str(item[0])):
        points = [(100 * _zeros(inside), key, inside) for key, inside in parts]
        points.sort(key=lambda p: p[0])
        drawn = [
            _point(x, quality[key], key, inside, f"{x:.4g} % zeros") for x, key, inside in points
        ]
        key = points[0][1]
        made.append(Series(_short(key, level=False), _style(key, styles), _kind(key), tuple(drawn)))
    return Panel("sparsity, % zeros in target weights", where="", series=tuple(made), curves=True,
                 reference=reference, **shared)  # fmt: skip


def _scatter(
    cost: Cost,
    placed: Sequence[tuple[Key, list[Record], float]],
    quality: dict[Key, float],
    styles: dict[str, int],
    shared: dict[str, Any],
) -> Panel:
    sign = -1 if shared["falling"] else 1
    eligible = [(key, at) for key, _, at in placed if key[-1] != "unverified"]
    best = frontier([(at, sign * quality[key]) for key, at in eligible])
    front = [eligible[i] for i in best]
    names = {key for key, _ in front}
    series = defaultdict(list)
    for key, inside, at in placed:
        point = _point(at, quality[key], key, inside, f"{human(at)} {cost.label}", key in names)
        series[_style(key, styles), _kind(key)].append(point)
    made = [
        Series("", style, kind, tuple(points)) for (style, kind), points in sorted(series.items())
    ]
    known = [at for _, _, at in placed if at > 0]
    wide = bool(known) and max(known) > WIDE * min(known)
    corners = tuple((at, quality[key]) for key, at in front)
    return Panel(
        cost.label, where=cost.machine, series=tuple(made), log_x=wide, front=corners, **shared
    )


def _costs(records: Sequence[Record]) -> list[Cost]:
    """Returns the axes that these records have; those of time once a machine.

    Published records beside own ones have no times: they are of another machine.
    """
    found = [
        Cost(
            "trainable parameters, without the head",
            lambda r: number(r[0], "params.trainable.body"),
        ),
        Cost("MACs, effective", lambda r: number(r[0], "macs.effective")),
        Cost("MACs, realizable", lambda r: number(r[0], "macs.realizable")),
        Cost("bytes stored", lambda r: number(r[0], "bytes.stored")),
    ]
    timed = [r for r in records if mark_of(r) != "published"]
    for machine in sorted({cost_tables.hardware(r) for r in timed}):
        here = [r for r in records if cost_tables.hardware(r) == machine]
        for setting in sorted({cost_tables.setting(s) for r in here for s in r.speed}):
            batch, length, dtype = setting
            label = f"time / dense's, {batch} × {length} tokens, {dtype}"
            found.append(Cost(label, partial(_latency, machine, setting), machine))
        found.append(Cost("seconds to train and prune", partial(_seconds, machine), machine))
    return found


def _latency(
    machine: str, setting: tuple[int, int, str], records: Sequence[Record]
) -> float | None:
    """Returns the median time of a pass / the dense model's in the same run, on one machine.

    Milliseconds of different cells would compare what else the machine did. None where a seed
    lacks it.
    """
    here = [r for r in records if cost_tables.hardware(r) == machine]
    found = [s for r in here for s in r.speed if cost_tables.setting(s) == setting]
    taken = [s.ms_p50 / s.dense_ms_p50 for s in found]
    return statistics.median(taken) if taken and len(taken) == len(here) else None


def _seconds(machine: str, records: Sequence[Record]) -> float | None:
    """Returns the mean seconds on one machine."""
    taken = [cost_tables.seconds(r) for r in records if cost_tables.hardware(r) == machine]
    return statistics.fmean(taken) if taken else None


def _point(
    x: float, y: float, key: Key, records: Sequence[Record], cost: str, front: bool = False
) -> Point:
    values = [r.scores.unit * r.scores.value for r in records if r.scores]
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    spread = f" ± {sd:.2f}" if len(values) > 1 else ""
    seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
    full = " ".join(part for part in name(key, str) if part != "–")
    return Point(x, y, sd, f"{full}: {y:.2f}{spread} ({seeds}), {cost}", _short(key), front)


def _short(key: Key, level: bool = True) -> str:
    """Returns a row's label: `pst 90%`, `wanda 2:4`."""
    _, pattern, sparsity, _, _ = key
    called, _, quantized = name(key, str)
    parts = [called] + ([quantized] if quantized != "–" else [])
    if pattern not in (UNSTRUCTURED, DENSE):
        parts.append(pattern.text)
    if level and pattern.sparsity is None:
        parts.append(f"{100 * sparsity:g}%")
    return " ".join(parts)


def _style(key: Key, styles: dict[str, int]) -> int:
    return -1 if key[0] == REFERENCE else styles[key[0]]


def _kind(key: Key) -> str:
    if key[-1] == "unverified":
        return "cross"
    return "mark" if key[1] in (UNSTRUCTURED, DENSE) else "hollow"


def _zeros(records: Sequence[Record]) -> float:
    return statistics.fmean(r.sparsity.overall for r in records if r.sparsity)
