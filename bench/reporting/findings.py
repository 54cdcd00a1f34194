"""The first sentences about a board: what its tests found, what that costs, what is not tested.

They say no more than the ranks do. "May be the best" is a row that no paired test finds worse than
another row of its level. A best mean is a mean, and seconds are seconds: neither is tested.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.cell import REFERENCE
from bench.core.record import Record, number
from bench.core.tables import human, percent
from bench.planning import registry
from bench.reporting import cost_tables
from bench.reporting.leaderboard import Board
from bench.reporting.rows import Key, Row, higher, mean, name
from bench.reporting.statistics import MIN_SEEDS

_SHOWN = 4
"""Levels that a sentence names; the table has the others."""

_NAMED = 3
"""Rows that are named; more are counted."""


@dataclass(frozen=True)
class _Level:
    """The ranked rows of one pattern, sparsity and quantizer, the best mean first."""

    text: str
    ranked: list[Row]
    best: list[Row]
    seeds_alone: bool


def sentences(board: Board) -> list[str]:
    """Returns two or three sentences, as plain text that may hold names from strangers."""
    levels = sorted(_levels(board), key=lambda level: -len(level.ranked))[:_SHOWN]
    if not levels:
        return [
            "Nothing is tested: a rank needs two rows of one level with "
            f"{MIN_SEEDS} common seeds. No claim is made of which is better.",
            *_limits(board),
        ]
    more = len(_levels(board)) - len(levels)
    quality = [f"at {level.text}, {_quality(level)}" for level in levels]
    rest = [f"{more} more levels are in the table"] if more else []
    return [
        f"Rows that may be the best, since no paired test finds a better one: "
        f"{'; '.join([*quality, *rest])}.",
        *_costs(board, levels),
        *_limits(board),
    ]


def _levels(board: Board) -> list[_Level]:
    columns: dict[str, list[Row]] = defaultdict(list)
    for key, records in board.rows:
        if _range(board, key):
            columns[_level(key)].append((key, records))
    made = []
    for text, rows in columns.items():
        rows = sorted(rows, key=lambda r: mean(r[1]), reverse=higher(rows[0][1]))
        best = [row for row in rows if _range(board, row[0])[0] == 1]
        made.append(_Level(text, rows, best, "†" in board.ranks[rows[0][0]]))
    return made


def _range(board: Board, key: Key) -> list[int]:
    """Returns the ends of a row's rank; empty where it has none."""
    return [int(end) for end in re.findall(r"\d+", board.ranks[key])]


def _quality(level: _Level) -> str:
    total, best = len(level.ranked), level.best
    top = f"{_name(level.ranked[0])}, {_score(level.ranked[0])}"
    if len(best) == 1:
        text = f"only {_name(best[0])} of {total} ({_score(best[0])})"
    elif len(best) == total:
        text = f"all {total} (best mean: {top})"
    elif len(best) <= _NAMED:
        names = ", ".join(map(_name, best))
        text = f"{names} of {total} (best mean: {top})"
    else:
        text = f"{len(best)} of {total} (best mean: {top})"
    return f"{text}, tested over seeds alone" if level.seeds_alone else text


def _costs(board: Board, levels: Sequence[_Level]) -> list[str]:
    """Returns a sentence with the cost of each level's best mean."""
    dense = next((row for row in board.rows if row[0][0] == REFERENCE), None)
    machine = _machine(dense[1]) if dense else None
    tops = [(level.text, level.ranked[0]) for level in levels]
    parts = [
        f"at {text}, {_name(top)} {_cost(board, top, machine)}"
        for text, top in tops
        if top[0][0] != REFERENCE
    ]
    if not parts:
        return []
    base = f" (dense: {_seconds(dense[1]):.0f} s on {machine})" if dense and machine else ""
    return [f"What the best means cost{base}: {'; '.join(parts)}."]


def _cost(board: Board, row: Row, machine: str | None) -> str:
    key, records = row
    trained = number(records[0], "params.trainable.body")
    parts = [f"trains {human(trained)} elements" if trained else "trains nothing"]
    if machine and _machine(records) == machine:
        parts.append(f"takes {_seconds(records):.0f} s")
    if (kept := board.recovery[key]) is not None:
        parts.append(f"keeps {percent(kept, 1)} % of the dense score")
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _limits(board: Board) -> list[str]:
    """Returns a sentence about rows without a rank, which dense needs not, and about old ones."""
    unranked = [row for row in board.rows if not _range(board, row[0]) and row[0][0] != REFERENCE]
    sent = [row for row in unranked if row[0][-1] == "unverified"]
    known = [row for row in unranked if row[0][-1] != "unverified"]
    few = [row for row in known if len(row[1]) < MIN_SEEDS]
    other = len(unranked) - len(sent) - len(few)
    old = sum(any(map(registry.is_stale, records)) for _, records in board.rows)
    parts = [
        f"{_rows(count)} {text}"
        for count, text in (
            (len(few), f"with fewer than {MIN_SEEDS} seeds"),
            (other, "without another row of that level on the same seeds"),
            (len(sent), "that someone sent in, unverified"),
        )
        if count
    ]
    said = [f"not ranked: {', '.join(parts)}"] if parts else []
    if old:
        said.append(f"of an earlier version, to be run again: {_rows(old, len(board.rows))}")
    text = "; ".join(said)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def _rows(count: int, total: int = 0) -> str:
    if count == total:
        return "all rows"
    return f"{count} of {total} rows" if total else f"{count} row{'s' if count > 1 else ''}"


def _level(key: Key) -> str:
    _, level, quantized = name(key, str)
    return level if quantized == "–" else f"{level} {quantized}"


def _name(row: Row) -> str:
    return name(row[0], str)[0]


def _score(row: Row) -> str:
    unit = next(r.scores.unit for r in row[1] if r.scores)
    return f"{unit * mean(row[1]):.2f}"


def _machine(records: Sequence[Record]) -> str | None:
    """Returns the hardware that all seeds ran on; times of several never mix."""
    found = {cost_tables.hardware(record) for record in records}
    return found.pop() if len(found) == 1 else None


def _seconds(records: Sequence[Record]) -> float:
    return statistics.fmean(map(cost_tables.seconds, records))
