"""The first sentences about a board: what its tests found, what that costs, what is not tested.

They say no more than the ranks do. "May be the best" is a row that no paired test finds worse than
another row of its level. A best mean is a mean, and seconds are seconds: neither is tested.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.cell import REFERENCE
from bench.core.record import number
from bench.core.tables import human, percent
from bench.planning import registry
from bench.reporting import cost_tables
from bench.reporting.boards import Board, Column, stands_apart
from bench.reporting.rows import Row, higher, mean
from bench.reporting.statistics import MIN_SEEDS

_SHOWN = 4
"""Levels that a sentence names, those with the most rows; the table has the others."""

_NAMED = 3
"""Rows that are named; more are counted."""


def sentences(board: Board) -> list[str]:
    """Returns two or three sentences, as plain text that may hold names from strangers."""
    tested = [column for column in board.columns if len(column.tested) > 1]
    columns = [column for column in tested if column.zeros] or tested
    largest = sorted(columns, key=lambda column: -len(column.tested))[:_SHOWN]
    shown = [column for column in columns if column in largest]
    if not shown:
        return [
            "Nothing is tested: a rank needs two rows of one level with "
            f"{MIN_SEEDS} common seeds. No claim is made of which is better.",
            *_limits(board),
        ]
    more = len(columns) - len(shown)
    quality = [f"at {column.heading}, {_quality(board, column)}" for column in shown]
    rest = [f"the table has {more} more level{'' if more == 1 else 's'}"] if more else []
    return [
        f"May be the best, as no paired test finds a better row: {'; '.join([*quality, *rest])}.",
        *_costs(board, shown),
        *_limits(board),
    ]


def _quality(board: Board, column: Column) -> str:
    ranked, best = column.tested, column.best
    total, top = len(ranked), f"{board.labels[_top(column)[0]]}, {_score(_top(column))}"
    if len(best) == 1:
        text = f"only {board.labels[best[0][0]]} of {total} ({_score(best[0])})"
    elif len(best) == total:
        text = f"all {total} (best mean: {top})"
    elif len(best) <= _NAMED:
        names = ", ".join(board.labels[row[0]] for row in best)
        text = f"{names} of {total} (best mean: {top})"
    else:
        text = f"{len(best)} of {total} (best mean: {top})"
    return f"{text}, tested over seeds alone" if column.tests.basis == "seeds" else text


def _top(column: Column) -> Row:
    """Returns the row with the best mean of those that were tested."""
    sign = 1 if higher(column.tested[0][1]) else -1
    return max(column.tested, key=lambda row: sign * mean(row[1]))


def _costs(board: Board, columns: Sequence[Column]) -> list[str]:
    """Returns a sentence with the cost of each column's best mean."""
    dense = board.dense
    machine = cost_tables.one_machine(dense[1]) if dense else None
    tops = [(column.heading, _top(column)) for column in columns]
    parts = [
        f"at {text}, {board.labels[top[0]]} {_cost(board, top)}"
        for text, top in tops
        if top[0][0] != REFERENCE
    ]
    if not parts:
        return []
    base = ""
    if dense and machine and cost_tables.trains(dense[1]):
        base = f" (dense: {cost_tables.mean_seconds(dense[1]):.0f} s on {machine})"
    return [f"What the best means cost{base}: {'; '.join(parts)}."]


def _cost(board: Board, row: Row) -> str:
    key, records = row
    trained = number(records[0], "params.trainable.body")
    parts = [f"trains {human(trained)} elements" if trained else "trains nothing"]
    if board.dense and cost_tables.one_machine([*records, *board.dense[1]]):
        parts.append(f"takes {cost_tables.mean_seconds(records):.0f} s")
    scores = records[0].scores
    if scores and (kept := board.recovery[key]) is not None:
        parts.append(
            f"keeps {percent(kept, 1)} % of the dense score"
            if higher(records)
            else f"has {1 / kept:.3g} times the dense {scores.metric}"
        )
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _limits(board: Board) -> list[str]:
    """Returns a sentence about rows without a rank; dense needs none."""
    tested = {key for column in board.columns for key, _ in column.tested}
    unranked = [row for row in board.rows if row[0] not in tested and row[0][0] != REFERENCE]
    sent = [row for row in unranked if row[0][-1] == "unverified"]
    ours = [row for row in unranked if row[0][-1] != "unverified"]
    old = [row for row in ours if any(map(registry.is_stale, row[1]))]
    known = [row for row in ours if not any(map(registry.is_stale, row[1]))]
    apart = [row for row in known if stands_apart(row[1])]
    few = [row for row in known if not stands_apart(row[1]) and len(row[1]) < MIN_SEEDS]
    other = len(known) - len(apart) - len(few)
    parts = [
        f"{_rows(count)} {text}"
        for count, text in (
            (len(old), "of an earlier version, to be run again"),
            (len(apart), f"at a sparsity of {'its' if len(apart) == 1 else 'their'} own"),
            (len(few), f"with fewer than {MIN_SEEDS} seeds"),
            (other, "without another row of that level on the same seeds and data"),
            (len(sent), "that someone sent in, unverified"),
        )
        if count
    ]
    return [f"Not ranked: {', '.join(parts)}."] if parts else []


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _score(row: Row) -> str:
    unit = next(r.scores.unit for r in row[1] if r.scores)
    return f"{unit * mean(row[1]):.2f}"
