"""All differences of a board's columns, with their intervals: what its ranks follow from."""

from __future__ import annotations

import math

from bench.core.tables import escape, markdown
from bench.reporting.boards import Board, Column
from bench.reporting.statistics import ALPHA

PAIRS_LEGEND = """\
Row minus column, in points (× 100 where higher is better; a ratio for perplexity), with the 95 %
interval of that one difference. **Bold**: told apart at 5 % over all pairs of the column at once.
The paired tests are over seeds × items, or over seeds alone where records hold no items that give
the score.
"""


def pairs(board: Board) -> str:
    """Returns a triangle of differences for each column with two tested rows, as Markdown."""
    return "\n\n".join(
        f"### {escape(column.heading)}\n\n{_over(column)}\n\n{_triangle(board, column)}"
        for column in board.columns
        if len(column.tested) > 1
    )


def _over(column: Column) -> str:
    basis = "seeds alone" if column.tests.basis == "seeds" else "seeds × items"
    return (
        f"{len(column.tested)} rows on {column.tests.seeds} common seeds, tested over {basis}: "
        f"{column.told_apart} pairs are told apart."
    )


def _triangle(board: Board, column: Column) -> str:
    at = [i for i, place in enumerate(column.tests.places) if place]
    names = [escape(board.labels[column.rows[i][0]]) for i in at]
    scores = column.rows[0][1][0].scores
    assert scores is not None
    unit = 1 if column.tests.basis == "log" else scores.unit
    rows = [
        [names[k], *(_cell(column, i, j, unit) for j in at[:k]), *[""] * (len(at) - 1 - k)]
        for k, i in enumerate(at)
        if k
    ]
    return markdown(("method", *names[:-1]), rows)


def _cell(column: Column, i: int, j: int, unit: float) -> str:
    tests = column.tests
    sign = "" if tests.basis == "log" else "+"
    digits = 3 if tests.basis == "log" else 1
    effect, low, high = (unit * float(m[i, j]) for m in (tests.effect, tests.low, tests.high))
    if math.isnan(effect):
        return ""
    text = f"{effect:{sign}.{digits}f} ({low:{sign}.{digits}f} … {high:{sign}.{digits}f})"
    return f"**{text}**" if tests.p[i, j] < ALPHA else text
